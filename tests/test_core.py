"Faults of the long loop: items that hang, kill or fill memory, damaged records, full disks, two runs at once, Ctrl-C, a cluster."
import ctypes, errno, hashlib, json, multiprocessing, os, signal, subprocess, sys, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from conftest import ROOT
from pathgen import core

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}

def stuck():
    "A minute in one call of C code, which no signal handler of Python interrupts."
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)

def misbehave(item, path):
    "Write `item`, unless it is the name of a fault."
    if item=="hang": stuck()
    if item=="killed": os.kill(os.getpid(), signal.SIGKILL)
    if item=="crash": ctypes.string_at(0)
    if item=="exit": os._exit(3)
    if item=="memory": np.ones(4*10**8)
    if item=="quit": sys.exit(2)
    path.write_text(str(item))

def test_an_item_that_hangs_or_kills_is_one_line_and_the_others_go_on(tmp_path):
    faults = dict(hang="took longer than 3 s (base.item_minutes)", killed="its worker was killed by SIGKILL",
                  crash="its worker was killed by SIGSEGV", exit="its worker ended with status 3",
                  memory="takes more memory than the 2 GB of base.item_gb", quit="SystemExit: 2")
    good = core.each(misbehave, [*faults, *range(12)], tmp_path, str, ".txt", workers=2, max_failed=.5, item_minutes=.05, item_gb=2)
    assert good==[str(i) for i in range(12)] and all((tmp_path/f"{i}.txt").read_text()==i for i in good)
    table = pd.read_parquet(tmp_path/"errors.parquet").set_index("item").error
    assert set(table.index)==set(faults) and not (tmp_path/".tmp").exists()
    for k,line in faults.items(): assert line in table[k] and "\n" not in table[k]

def starved(item, path): raise MemoryError

def test_memory_that_is_lacking_without_a_bound_names_the_workers(tmp_path):
    core.each(starved, "a", tmp_path, str, ".txt", max_failed=1)
    assert pd.read_parquet(tmp_path/"errors.parquet").error[0].startswith("not enough memory: lower base.workers (MemoryError")

COLD = "import sys; from pathlib import Path; from test_core import core, misbehave; core.each(misbehave, 'abc', Path(sys.argv[1]), str, '.txt', item_gb=.001)"

def test_a_bound_no_worker_can_start_under_is_named(tmp_path):
    "In a process of its own, whose workers have imported nothing yet."
    said = subprocess.run([sys.executable, "-c", COLD, str(tmp_path)], env=ENV, stderr=subprocess.PIPE, text=True, timeout=120).stderr
    assert said.splitlines()[-1].endswith("PathgenError: the workers end before they begin: raise base.item_gb or lower base.workers"), said

def threads(item, path):
    from threadpoolctl import threadpool_info
    core.write_json([os.environ["OMP_NUM_THREADS"], *(p["num_threads"] for p in threadpool_info())], path)

def test_a_temporary_folder_too_deep_for_the_sockets_of_workers_is_named(tmp_path, monkeypatch):
    how = dict(workers=1, item_gb=2)
    monkeypatch.setattr(core.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(core, "DEEPEST", len(str(tmp_path)))
    assert core.each(misbehave, "x", tmp_path/"fits", str, ".txt", **how)==["x"]
    monkeypatch.setattr(core, "DEEPEST", len(str(tmp_path))-1)
    with pytest.raises(core.PathgenError, match=f"{tmp_path}: the path is too long .* set TMPDIR to a folder of at most {core.DEEPEST} bytes"):
        core.each(misbehave, "x", tmp_path/"deep", str, ".txt", **how)

def test_workers_share_the_cores(tmp_path):
    core.each(threads, ["a"], tmp_path, str, ".json", item_minutes=1)
    share, *used = core.read_json(tmp_path/"a.json")
    assert int(share)==os.cpu_count() and used and set(used)<={int(share)}
    core.each(threads, ["b","c"], tmp_path, str, ".json", workers=2)
    share, *used = core.read_json(tmp_path/"b.json")
    assert int(share)==max(1, os.cpu_count()//2) and set(used)=={int(share)}

def unreadable(item): raise PermissionError(errno.EACCES, "Permission denied", f"{item}.svs")

def test_an_input_that_cannot_be_read_is_the_fault_of_its_item(tmp_path):
    inputs = lambda i: unreadable(i) if i=="b" else None
    assert core.each(misbehave, "abc", tmp_path, str, ".txt", inputs=inputs, max_failed=.5)==["a","c"]
    assert "b.svs" in pd.read_parquet(tmp_path/"errors.parquet").error[0]

# Records and results that were damaged

def count(item, path, made): made.append(item), path.write_text(item*1000)

def make(out, **kw):
    "Make a, b and c; returns those that were not done yet."
    made = []
    core.each(partial(count, made=made), "abc", out, str, ".txt", **kw)
    return made

@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"stamp": STAMP}', b'{"stamp": STAMP, "files": {}}',
    b'{"stamp": STAMP, "files": ["b.txt"]}', b'{"stamp": STAMP, "files": {"../victim": "x"}}', b'{"stamp": STAMP, "files": {"FOLDER/victim": "x"}}',
    b'{"stamp": STAMP, "files": {"x/../../victim": "x"}}'])
def test_a_damaged_record_is_made_again(tmp_path, damage):
    out = tmp_path/"out"
    assert make(out)==["a","b","c"] and make(out)==[]
    (tmp_path/"victim").write_text("stays")
    (out/"x").mkdir()
    stamp = json.dumps(core.read_json(out/".done/b.json")["stamp"]).encode()
    (out/".done/b.json").write_bytes(damage.replace(b"STAMP", stamp).replace(b"FOLDER", bytes(tmp_path)))
    assert make(out)==["b"] and make(out)==[] and (tmp_path/"victim").exists()

def test_a_record_no_longer_asked_for_removes_nothing_outside(tmp_path):
    out = tmp_path/"out"
    make(out)
    (tmp_path/"victim").write_text("stays")
    (out/".done/z.json").write_text('{"stamp": 1, "files": {"../victim": "x"}}')
    assert make(out)==[] and (tmp_path/"victim").exists() and not (out/".done/z.json").exists()

@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.write_bytes(b"x"+p.read_bytes()[1:]),
                                    lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_a_damaged_result_is_made_again(tmp_path, damage):
    make(tmp_path)
    damage(tmp_path/"b.txt")
    assert make(tmp_path)==["b"] and (tmp_path/"b.txt").read_text()=="b"*1000

def test_results_of_another_encoder_are_made_again(tmp_path):
    make(tmp_path, params=dict(encoder="one"))
    foreign = tmp_path/"b.txt"
    assert make(tmp_path, params=dict(encoder="one"))==[] and make(tmp_path, params=dict(encoder="two"))==["a","b","c"]
    foreign.write_text("features of somebody else's encoder")
    assert make(tmp_path, params=dict(encoder="two"))==["b"] and foreign.read_text()=="b"*1000

@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path, damage):
    (tmp_path/"a.json").write_bytes(damage)
    with pytest.raises(core.PathgenError, match="a.json is not JSON"): core.read_json(tmp_path/"a.json")

@pytest.mark.parametrize("path,stage", [("slides.parquet","slides"), ("mil/slides.parquet","mil_slides"), ("mil/tiles/a.h5","mil_tile"), ("mil/features","mil_embed"), ("features/a.h5","embed")])
def test_what_is_missing_names_its_stage(tmp_path, path, stage):
    with pytest.raises(core.PathgenError, match=f"{path} is missing: run `pathgen run {stage}` first"): core.need(tmp_path/path)

def test_what_is_no_longer_asked_for_goes_from_folders_too(tmp_path):
    run = lambda keys: core.each(misbehave, keys, tmp_path, str, ".txt")
    assert run(["x/a","x/b","c"])==["x/a","x/b","c"] and (tmp_path/"x/b.txt").exists()
    assert run(["x/a"])==["x/a"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())==[".done/.lock", ".done/x/a.json", "x/a.txt"]

def test_the_result_of_an_item_that_fails_by_now_goes(tmp_path):
    run = lambda **kw: core.each(misbehave, "abc", tmp_path, str, ".txt", max_failed=.5, **kw)
    assert run()==["a","b","c"]
    assert run(inputs=lambda i: unreadable(i) if i=="b" else None)==["a","c"]
    assert not (tmp_path/"b.txt").exists() and not (tmp_path/".done/b.json").exists()
    assert (tmp_path/"errors.parquet").exists() and run()==["a","b","c"] and not (tmp_path/"errors.parquet").exists(), "and its line, when all is well"

def test_two_items_of_one_name_are_refused_before_any_work(tmp_path):
    with pytest.raises(core.PathgenError, match="two items share the name b: rename one of them"): core.each(misbehave, "abcb", tmp_path/"out", str, ".txt")
    assert not (tmp_path/"out").exists()

def test_a_stage_of_which_every_row_failed_ends_whatever_share_may(tmp_path):
    df = pd.DataFrame(dict(patch_id=["a","b"], text=["",""], error=["no answer"]*2))
    with pytest.raises(core.PathgenError, match="2 of 2 captions failed, such as a: no answer"): core.keep_good(df, tmp_path/"captions.parquet", 1)
    assert os.listdir(tmp_path)==["captions_failed.parquet"]

def test_a_device_that_is_not_there_is_named():
    with pytest.raises(core.PathgenError, match="base.device is xpu:1, which this machine lacks: use auto or cpu"): core.pick_device("xpu:1")

def test_what_is_said_of_an_error_is_short(): assert len(core.one_line(ValueError("why "*500))) < 320

def with_more(item, path, more):
    "Write `item`, and beside it a file for each of `more`."
    path.write_text(item)
    for m in more: path.with_name(f"{item}.{m}").write_text(m)

def test_what_an_item_wrote_before_and_writes_no_more_goes(tmp_path):
    run = lambda *more: core.each(partial(with_more, more=more), "a", tmp_path, str, ".txt", params=more)
    assert run("png","json")==["a"] and run("json")==["a"]
    assert sorted(os.listdir(tmp_path))==[".done", "a.json", "a.txt"]

def nothing(item, path): path.with_name("other").write_text(item)

def test_an_item_without_its_file_has_failed(tmp_path):
    assert core.each(nothing, "a", tmp_path, str, ".txt", max_failed=1)==[]
    assert "wrote no a.txt" in pd.read_parquet(tmp_path/"errors.parquet").error[0] and sorted(os.listdir(tmp_path))==[".done", "errors.parquet"]

def test_a_write_that_fails_or_is_stopped_leaves_the_file_as_it_was(tmp_path):
    core.write_text("whole", tmp_path/"a.txt")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), core.atomic(tmp_path/"a.txt") as tmp:
            tmp.write_text("half")
            raise error
        assert os.listdir(tmp_path)==["a.txt"] and (tmp_path/"a.txt").read_text()=="whole"

def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    said, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(core.os, "fsync", lambda fd: said.append("sync") or sync(fd))
    monkeypatch.setattr(core.os, "replace", lambda a, b: said.append("name") or replace(a, b))
    make(tmp_path)
    assert said==["sync","name"]*6, "a result and a record for each item"

# Outputs that cannot be written

def fill(item, path, error, made):
    made.append(item)
    assert os.listdir(path.parent.parent)==[item], "the half of a failed item takes no room"
    path.write_bytes(b"half")
    if item=="b": raise error

def test_what_a_killed_run_left_takes_no_room(tmp_path):
    core.write_text("half", tmp_path/".tmp/z/z.txt")
    assert core.each(partial(fill, error=None, made=[]), "ac", tmp_path, str, ".txt")==["a","c"]

@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_stops_at_once_with_one_line(tmp_path, number, wrapped):
    error, made = OSError(number, os.strerror(number)), []
    if wrapped: error = ValueError("cannot save"); error.__cause__ = OSError(number, os.strerror(number))
    with pytest.raises(core.OutputError, match="cannot be written: ") as e:
        core.each(partial(fill, error=error, made=made), "abc", tmp_path, str, ".txt", max_failed=1)
    line = str(e.value)
    assert made==["a","b"] and str(tmp_path) in line and os.strerror(number) in line and "GB free" in line and "make room" in line
    assert sorted(os.listdir(tmp_path))==[".done", "a.txt"], "what is done stays, nothing half-written, no error an item"
    made.clear()
    assert core.each(partial(fill, error=None, made=made), "ac", tmp_path, str, ".txt")==["a","c"] and made==["c"]

def test_a_library_that_hides_the_number(tmp_path, monkeypatch):
    "numpy says `6750000 requested and 1048304 written`."
    monkeypatch.setattr(core.shutil, "disk_usage", lambda p: SimpleNamespace(free=0))
    with pytest.raises(core.OutputError, match="No space left on device"):
        core.each(partial(fill, error=OSError("6750000 requested and 1048304 written"), made=[]), "abc", tmp_path, str, ".txt", max_failed=1)

def test_a_folder_that_may_not_be_written(tmp_path):
    mine, made = tmp_path/"out", []
    inside = PermissionError(errno.EACCES, "Permission denied", str(mine/".tmp/b/b.txt"))
    with pytest.raises(core.OutputError, match="Permission denied"):
        core.each(partial(fill, error=inside, made=made), "abc", mine, str, ".txt", max_failed=1)
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/slides/b.svs")
    assert core.each(partial(fill, error=elsewhere, made=made), "abc", mine, str, ".txt", max_failed=1)==["a","c"], "an input is its item's fault"

def fill_or_wait(item, path):
    if item: stuck()
    raise OSError(errno.ENOSPC, "No space left on device")

def test_a_full_disk_stops_the_workers_too(tmp_path):
    start = time.time()
    with pytest.raises(core.OutputError): core.each(fill_or_wait, range(9), tmp_path, str, ".txt", workers=2, max_failed=1)
    assert time.time()-start<30 and not multiprocessing.active_children() and os.listdir(tmp_path)==[".done"]

def write_big(item, path):
    "600 kB by a library that drops the error number, Parquet or HDF5."
    a = np.random.default_rng(0).integers(0, 255, 600_000).astype("uint8")
    if item[0]=="n": a.tofile(path)
    if item[0]=="p": pd.DataFrame(dict(a=a)).to_parquet(path)
    if item[0]=="h":
        import h5py
        with h5py.File(path, "w") as f: f["a"] = a

SMALL_DISK = """
import sys, subprocess
from pathgen import core
import test_core as t
def go(keys, workers):
    try: return core.each(t.write_big, keys, "out", str, ".bin", workers=workers, max_failed=1)
    except core.OutputError as e: print("line:", e); return sorted(p.name for p in core.Path("out").iterdir())
for kind in "nph":
    print(go([kind+str(i) for i in range(4)], 1))
print(go(["n0","n1","n2","n3"], 2))
subprocess.run(["mount", "-o", "remount,size=9m", "."], check=True)
print(go(["n0","n1","n2","n3"], 1))
subprocess.run(["mount", "-o", "remount,ro", "."], check=True)
print(go(["n0","n1","n2","n3","n4"], 1))
"""

def test_a_small_disk_really_filled(tmp_path):
    (tmp_path/"go.py").write_text(f"if __name__=='__main__':\n" + "\n".join("    "+l for l in SMALL_DISK.splitlines()))
    own = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1500k tmpfs /mnt && cd /mnt && {sys.executable} {tmp_path}/go.py"]
    may = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if may.returncode: pytest.skip(f"no file system of one's own here: {may.stderr.strip()}")
    r = subprocess.run(own, env=ENV, capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    lines = r.stdout.splitlines()
    for kind, said, left in zip("nph", lines[0:6:2], lines[1:6:2]):
        assert said.startswith("line: out cannot be written: No space left on device (0.0 GB free)"), said
        assert left==str([".done", f"{kind}0.bin", f"{kind}1.bin"])
    assert lines[6].startswith("line: out") and "cannot be written: No space left on device" in lines[6], "two workers may fill it at any point"
    assert lines[8]==str(["n0","n1","n2","n3"]), "it goes on where there is room"
    assert lines[9].startswith("line: out cannot be written: Read-only file system"), lines[9]

# Two runs, Ctrl-C, kill -9

def slow(item, path, pids):
    with open(pids, "a") as f: f.write(f"{os.getpid()}\n")
    path.with_name(f"{item}.part").write_text("half")
    if item>1: stuck()
    path.write_text(str(item))

SLOW = """
import sys
from functools import partial
from pathgen import core
import test_core as t
if __name__=="__main__":
    core.each(partial(t.slow, pids="pids"), range(6), "out", str, ".txt", workers=2)
"""

@pytest.fixture
def running(tmp_path):
    "A loop in a process of its own that has done two items and sits on the next two, and the ids of its workers."
    (tmp_path/"go.py").write_text(SLOW)
    p = subprocess.Popen([sys.executable, "go.py"], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    pids = tmp_path/"pids"
    end = time.time()+60
    while not (pids.exists() and len(pids.read_text().split())>=4) and time.time()<end: time.sleep(.05)
    yield p, [int(i) for i in set(pids.read_text().split())]
    p.kill(), p.wait()

def gone(pids, seconds):
    "Whether all of these processes end in that time."
    there = lambda: [i for i in pids if Path(f"/proc/{i}/cmdline").exists() and Path(f"/proc/{i}/cmdline").read_bytes()]
    end = time.time()+seconds
    while there() and time.time()<end: time.sleep(.05)
    return not there()

def test_ctrl_c_ends_workers_and_leaves_nothing_half_written(running, tmp_path):
    p, workers = running
    start = time.time()
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=30)
    assert p.returncode and time.time()-start<5 and gone(workers, 1)
    assert sorted(os.listdir(tmp_path/"out"))==[".done", "0.part", "0.txt", "1.part", "1.txt"]
    assert sorted(os.listdir(tmp_path/"out/.done"))==[".lock", "0.json", "1.json"]

def test_a_second_run_refuses_and_a_killed_one_leaves_no_lock_and_no_workers(running, tmp_path):
    p, workers = running
    again = lambda: core.each(misbehave, range(2), tmp_path/"out", str, ".txt")
    with pytest.raises(core.PathgenError, match=f"out is being written by process {p.pid} on .*: wait for it, or stop it"): again()
    assert len(os.listdir(tmp_path/"out/.tmp"))==2, "the first run keeps its workshop"
    p.kill(), p.wait()
    assert gone(workers, 5)
    assert again()==["0","1"] and sorted(os.listdir(tmp_path/"out"))==[".done", "0.txt", "1.txt"]

# A cluster

def test_without_ray_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(core.PathgenError, match=r"uv pip install -e '\.\[cluster\]'"):
        core.each(misbehave, "ab", tmp_path, str, ".txt", engine="ray")
    with pytest.raises(core.PathgenError, match="base.engine is rye: it takes local, ray"):
        core.each(misbehave, "ab", tmp_path, str, ".txt", engine="rye")
