"The command: bytes, messages, exit status, progress, interruption, speed of --help."
import errno, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pytest, yaml
from typer.testing import CliRunner
from conftest import ROOT
from pathgen import cli, core
from pathgen.core import PathgenError
from pathgen.warm import NURSERY

PARAMS = dict(base=dict(data="../data", seed=3, deidentified=False), cut=dict(tile_px=16, mpp=None))

def project(root, code, params=PARAMS, extra=""):
    "A project with one stage, `cut`."
    cells = [nbformat.v4.new_code_cell('tile_px = 8 # Side, px\nmpp = None # Target µm per px, "#" or none\ndata = "../data" # Root\n'
                                       f'seed = 0 # Seed{extra}', id="b", metadata=dict(tags=["parameters"])),
             nbformat.v4.new_code_cell(f"#| run\nfrom pathlib import Path\n{code}", id="c")]
    (root/"nbs").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root/"nbs"/"20_cut.ipynb")
    (root/"params.yaml").write_text(yaml.safe_dump(params))
    return root

def own_env(): return {**os.environ, "PYTHONPATH":str(ROOT)}

def shell(root, *args, **kw):
    "`pathgen ...` as a process of its own, in `root`."
    return subprocess.run([sys.executable, "-c", "from pathgen.cli import main; main()", *args], cwd=root, env=own_env(), capture_output=True,
                          text=True, timeout=600, **kw)

@pytest.fixture(params=["forked", "new"])
def kernel(request, monkeypatch):
    "Kernels of both kinds."
    if request.param=="new": monkeypatch.delenv(NURSERY, raising=False)

def invoke(root, *args, monkeypatch):
    "`pathgen ...` in this process."
    monkeypatch.chdir(root)
    return CliRunner().invoke(cli.app, list(args))

def test_same_run_same_bytes_and_progress_reaches_the_terminal(tmp_path, kernel):
    code = ("import sys, warnings\nfrom pathgen.core import progress\nfor _ in progress(range(3), 'cutting'): pass\n"
            "warnings.warn('once')\nprint(object())\nopen(f'{data}/out.txt','w').write(f'{tile_px} {mpp} {seed}')")
    project(tmp_path, code)
    (tmp_path/"data").mkdir()
    first = shell(tmp_path, "run", "cut")
    assert first.returncode==0, first.stderr
    assert first.stdout=="cut: data/runs/20_cut.ipynb\n"
    assert "cutting" in first.stderr and "100%" in first.stderr and "once" in first.stderr
    assert (tmp_path/"data"/"out.txt").read_text()=="16 None 3"
    run = tmp_path/"data"/"runs"/"20_cut.ipynb"
    before = run.read_bytes()
    assert shell(tmp_path/"data", "run", "cut").returncode==0, "any folder of the project will do"
    assert run.read_bytes()==before
    nb = json.loads(before)
    assert [c["id"] for c in nb["cells"]]==["b", "params", "c"] and "papermill" not in before.decode()
    assert sorted(p.name for p in run.parent.iterdir())==["20_cut.ipynb"]

@pytest.mark.parametrize("free", (True, False))
def test_what_may_leave_the_machine_reaches_the_kernel(tmp_path, monkeypatch, free):
    monkeypatch.setenv(core.DEIDENTIFIED, str(not free).lower())
    project(tmp_path, "from pathgen.core import deidentified\nopen(f'{data}/out.txt','w').write(str(deidentified()))", PARAMS | dict(base=PARAMS["base"] | dict(deidentified=free)))
    r = shell(tmp_path, "run", "cut")
    assert r.returncode==0 and (tmp_path/"data"/"out.txt").read_text()==str(free), r.stderr

def test_a_failing_stage_ends_in_one_line_and_keeps_its_notebook(tmp_path):
    project(tmp_path, "from pathgen.core import read_table\nread_table(f'{data}/patches.parquet')")
    r = shell(tmp_path, "run", "cut")
    assert r.returncode==1 and r.stdout==""
    last = r.stderr.strip().splitlines()[-1]
    assert last.startswith("pathgen run: ../data/patches.parquet is missing: run `pathgen run select` first")
    assert "Traceback" not in r.stderr
    failed = tmp_path/"data"/"runs"/"20_cut.failed.ipynb"
    assert "data/runs/20_cut.failed.ipynb" in last and "PathgenError" in failed.read_text()
    assert not (tmp_path/"data"/"runs"/"20_cut.ipynb").exists()
    nb = nbformat.read(tmp_path/"nbs"/"20_cut.ipynb", 4)
    nb.cells[-1].source = "1"
    nbformat.write(nb, tmp_path/"nbs"/"20_cut.ipynb")
    assert shell(tmp_path, "run", "cut").returncode==0 and not failed.exists()

def test_a_fault_of_the_program_is_named_with_its_type(tmp_path):
    r = shell(project(tmp_path, "1/0"), "run", "cut")
    assert r.returncode==1 and "pathgen run: ZeroDivisionError: division by zero (traceback in" in r.stderr

def test_a_killed_kernel_is_told(tmp_path, kernel):
    r = shell(project(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"), "run", "cut")
    assert r.returncode==1 and "the kernel died, often for want of memory" in r.stderr and "Traceback" not in r.stderr

def kernels(root): # Kernels whose working folder lies in `root`
    def cwd(p):
        try: return os.readlink(p/"cwd")
        except OSError: return ""
    return [p.name for p in Path("/proc").glob("[0-9]*") if cwd(p).startswith(str(root))]

@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the kernel in /proc")
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interruption_is_clean(tmp_path, sig, kernel):
    project(tmp_path, "import time\nPath('../started').write_text('')\ntime.sleep(120)")
    p = subprocess.Popen([sys.executable, "-c", "from pathgen.cli import main; main()", "run", "cut"], cwd=tmp_path,
                         env=own_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a background job ignores Ctrl-C
    end = time.time()+300
    while not (tmp_path/"started").exists() and time.time()<end: time.sleep(.1)
    p.send_signal(sig)
    out, err = p.communicate(timeout=300)
    told = "stopped: what is finished stays" in err and "Traceback" not in err
    assert (p.returncode, told)==((130, True) if sig!=signal.SIGKILL else (-9, False)), err
    end = time.time()+60
    while kernels(tmp_path) and time.time()<end: time.sleep(.1)
    assert kernels(tmp_path)==[]
    assert not (tmp_path/"data"/"runs"/"20_cut.ipynb").exists()

@pytest.mark.parametrize("change, message", [
    (dict(cut=dict(tile_px=16, mpp=None, tile_pxs=1)), "params.yaml: cut.tile_pxs is not a parameter of nbs/20_cut.ipynb: did you mean tile_px?"),
    (dict(cut=dict(mpp=None)), "params.yaml: cut.tile_px is missing: a whole number (Side, px; such as 8)"),
    (dict(cut=dict(tile_px="16", mpp=None)), "params.yaml: cut.tile_px is '16', but takes a whole number (Side, px)"),
    (dict(cut=dict(tile_px=True, mpp=None)), "params.yaml: cut.tile_px is True, but takes a whole number"),
    (dict(cut=dict(tile_px=16, mpp=[1])), "params.yaml: cut.mpp is [1], but takes a text, or null"),
    (dict(cut=dict(tile_px=16, mpp=None, seed=1)), "params.yaml: cut.seed is not a parameter of nbs/20_cut.ipynb"),
    (dict(base=dict(data="../data")), "params.yaml: base.seed is missing: a whole number"),
    (dict(base=dict(data="../data", seed=0)), "params.yaml: base.deidentified is missing: true or false"),
    (dict(base=dict(data="../data", seed="x")), "params.yaml: base.seed is 'x', but takes a whole number, at least 0 (seed of the run"),
    (dict(base=dict(data="../data", seed=0, wrokers=1)), "params.yaml: base.wrokers is not a parameter: did you mean workers?"),
    (dict(base=dict(data="../data", seed=-1)), "params.yaml: base.seed is -1, but takes a whole number, at least 0"),
    (dict(base=dict(data="../data", seed=0, engine="rey")), "params.yaml: base.engine is 'rey', but takes one of local, ray, HOST:PORT: did you mean ray?"),
    (dict(cut=None), "params.yaml must hold sections"),
    (dict(ctu=dict(tile_px=16)), "params.yaml: ctu is not a stage: did you mean cut?"),
    (dict(cut=dict(tile_px=None, mpp=None)), "params.yaml: cut.tile_px is None, but takes a whole number (Side, px)"),
    (dict(cut=dict(tile_px="1e-4", mpp=None)), "params.yaml: cut.tile_px is '1e-4', but takes a whole number; YAML reads 1e-4 as text, write 0.0001"),
])
def test_wrong_parameters_are_refused_before_any_work(tmp_path, monkeypatch, change, message):
    project(tmp_path, "Path('../ran').write_text('')", params={**PARAMS, **change})
    r = invoke(tmp_path, "run", "cut", monkeypatch=monkeypatch)
    assert r.exit_code==1 and message in r.output and len(r.output.strip().splitlines())==1
    assert not (tmp_path/"ran").exists()

def test_an_unknown_provider_is_refused_before_any_work(tmp_path, monkeypatch):
    project(tmp_path, "Path('../ran').write_text('')", params=PARAMS | dict(cut=dict(tile_px=16, mpp=None, provider="bultin")), extra='\nprovider = "builtin" # Who answers')
    r = invoke(tmp_path, "run", "cut", monkeypatch=monkeypatch)
    assert r.exit_code==1 and "params.yaml: cut.provider is 'bultin': did you mean builtin?" in r.output and not (tmp_path/"ran").exists()

def test_a_wrong_value_of_a_later_stage_is_refused_before_any_work(tmp_path, monkeypatch):
    project(tmp_path, "Path('../ran').write_text('')", params=PARAMS | dict(glue=dict(tile_px="much", mpp=None)))
    (tmp_path/"nbs/30_glue.ipynb").write_bytes((tmp_path/"nbs/20_cut.ipynb").read_bytes())
    r = invoke(tmp_path, "run", "cut", monkeypatch=monkeypatch)
    assert r.exit_code==1 and "params.yaml: glue.tile_px is 'much', but takes a whole number" in r.output and not (tmp_path/"ran").exists()
    (tmp_path/"params.yaml").write_text(yaml.safe_dump(PARAMS))
    r = invoke(tmp_path, "run", "cut", monkeypatch=monkeypatch)
    assert r.exit_code==1 and "params.yaml has no section glue: add one with tile_px, mpp" in r.output and not (tmp_path/"ran").exists()

def test_a_second_run_of_a_stage_refuses(tmp_path, monkeypatch):
    project(tmp_path, "Path('../ran').write_text('')")
    (tmp_path/"data/.locks").mkdir(parents=True)
    with core.alone(tmp_path/"data/.locks/cut", "it"): r = invoke(tmp_path, "run", "cut", monkeypatch=monkeypatch)
    assert r.exit_code==1 and f"stage cut of data is being written by process {os.getpid()} on " in r.output
    assert not (tmp_path/"ran").exists()

@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, number):
    def execute(*a): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(cli, "execute", execute)
    r = invoke(project(tmp_path, "1"), "run", "cut", monkeypatch=monkeypatch)
    assert r.exit_code==1 and f"data cannot be written: {os.strerror(number)}" in r.output and len(r.output.strip().splitlines())==1

def test_missing_section_file_stage_and_project(tmp_path, monkeypatch):
    project(tmp_path/"p", "1", params=dict(base=PARAMS["base"]))
    say = lambda *a: invoke(tmp_path/"p", *a, monkeypatch=monkeypatch).output
    assert "params.yaml has no section cut: add one with tile_px, mpp" in say("run", "cut")
    assert "params: other.yaml is missing" in say("run", "cut", "--params", "other.yaml").replace("pathgen run: ", "params: ").replace(f"{tmp_path}/p/", "")
    assert "cutt is not a stage: did you mean cut?" in say("run", "cutt")
    (tmp_path/"p"/"params.yaml").write_text("base: [1\n")
    assert "is not valid YAML" in say("run", "cut")
    (tmp_path/"empty").mkdir()
    r = invoke(tmp_path/"empty", "doctor", monkeypatch=monkeypatch)
    assert r.exit_code==1 and "run pathgen inside the project" in r.output

@pytest.mark.parametrize("data, says", [(b"", "must hold sections"), (b"- cut\n", "must hold sections"), (b"cut", "must hold sections"), (b"cut: 3\n", "must hold sections"),
    (b"cut: {tile_px: 1", "is not valid YAML"), (b"\xff\xfec\0", "is not valid YAML"), (b"cut: {note: caf\xe9}\n", "is not valid YAML")])
def test_a_params_file_that_is_none_is_one_line(tmp_path, monkeypatch, data, says):
    project(tmp_path, "1")
    (tmp_path/"params.yaml").write_bytes(data)
    r = invoke(tmp_path, "run", "cut", monkeypatch=monkeypatch)
    assert r.exit_code==1 and f"params.yaml {says}" in r.output and len(r.output.strip().splitlines())==1

def test_shared_notebook_has_a_run_of_its_own(tmp_path):
    project(tmp_path, "print(tile_px)", params=dict(base=PARAMS["base"]) | {s:dict(tile_px=5, mpp=None) for s,n in cli.SHARED.items() if n=="40_train_clip"})
    (tmp_path/"nbs"/"20_cut.ipynb").rename(tmp_path/"nbs"/"40_train_clip.ipynb")
    assert list(cli.stages(tmp_path))[0]=="clip_init"
    assert shell(tmp_path, "run", "clip_init").stdout=="clip_init: data/runs/40_train_clip.clip_init.ipynb\n"

def test_help_answers_at_once():
    best = 9
    for _ in range(3):
        t = time.time()
        r = shell(ROOT, "--help")
        best = min(best, time.time()-t)
    assert r.returncode==0 and all(c in r.stdout for c in ("run", "doctor", "show", "profile"))
    assert best<3, "heavy imports at the top of cli? (under 1 s on an idle machine)"

def test_help_of_each_command_names_its_parameters(monkeypatch):
    for c,words in dict(run=("STAGE", "Params file"), show=("slide_id or a patch_id",), profile=("--force",), doctor=("one line a check",)).items():
        out = " ".join(invoke(ROOT, c, "--help", monkeypatch=monkeypatch).output.split())
        assert all(w.lower() in out.lower() for w in words), out

def git(root, *args): subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=root, check=True, capture_output=True)

def test_profile_never_loses_edits(tmp_path, monkeypatch):
    root = project(tmp_path, "1")
    (root/"profiles").mkdir()
    (root/"profiles"/"smoke.yaml").write_text("base: {seed: 9}\n")
    default = (root/"params.yaml").read_text()
    for a in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]): git(root, *a)
    say = lambda *a: invoke(root, "profile", *a, monkeypatch=monkeypatch)
    assert "default (in place)" in say().output
    assert "is now the profile smoke (it was default)" in say("smoke").output
    assert "did you mean smoke?" in say("smok").output and say("smok").exit_code==1
    (root/"params.yaml").write_text("base: {seed: 5}\n")
    r = say("default")
    assert r.exit_code==1 and "edits that are in no profile" in r.output and "seed: 5" in (root/"params.yaml").read_text()
    assert say("default", "--force").exit_code==0 and (root/"params.yaml").read_text()==default

def test_doctor_fails_for_a_wrong_section_and_an_unreadable_input(tmp_path, monkeypatch):
    params = dict(base=PARAMS["base"], cut=dict(tile_px="no", mpp="/nowhere/mpp.csv"))
    monkeypatch.setattr(cli, "CHECKS", [cli.check_inputs])
    r = invoke(project(tmp_path, "1", params=params), "doctor", monkeypatch=monkeypatch)
    assert r.exit_code==1
    assert "fail  params.yaml: cut.tile_px is 'no'" in r.output and "fail  cut.mpp: /nowhere/mpp.csv cannot be read" in r.output

def test_doctor_looks_at_a_profile_and_at_a_folder_without_a_dot(tmp_path, monkeypatch):
    root = project(tmp_path, "1")
    (root/"profiles").mkdir(exist_ok=True)
    (root/"profiles/mine.yaml").write_text(yaml.safe_dump(dict(base=PARAMS["base"], slides=dict(folder="myslides", reports=None))))
    monkeypatch.setattr(cli, "CHECKS", [cli.check_inputs])
    r = invoke(root, "doctor", "--params", "profiles/mine.yaml", monkeypatch=monkeypatch)
    assert r.exit_code==1 and "fail  slides.folder: nbs/myslides cannot be read: correct it in profiles/mine.yaml" in r.output, r.output

def test_doctor_asks_for_no_file_that_the_run_itself_makes():
    from pathgen.core import read_params
    absent = [w for w,p in cli.input_paths(ROOT, read_params(ROOT/"params.yaml")) if not p.exists()]
    assert absent==[]

def test_doctor_goes_on_after_a_check_that_breaks(tmp_path, monkeypatch):
    def check_nothing(root, file): raise ImportError("libxyz.so")
    monkeypatch.setattr(cli, "CHECKS", [check_nothing, cli.check_python])
    r = invoke(project(tmp_path, "1"), "doctor", monkeypatch=monkeypatch)
    assert r.exit_code==1 and "fail  nothing: ImportError: libxyz.so" in r.output and "Python" in r.output

def test_default_value_with_a_comment_sign(tmp_path):
    nb = project(tmp_path, "1", extra='\nmark = "a # b" # Text with a # in it')/"nbs"/"20_cut.ipynb"
    assert cli.parameters(nb)["mark"]==("a # b", "Text with a # in it")
    assert cli.parameters(nb)["mpp"][1]=='Target µm per px, "#" or none'

STAGE = dict(cmd="python make.py", deps=["make.py"], outs=["data/big.txt"], params=["base.seed"], metrics=[{"data/metrics/cut.json":dict(cache=False)}])
MAKE = """import json, os, sys, yaml
open('ran', 'a').write('x')
os.makedirs('data/metrics', exist_ok=True)
open('data/big.txt', 'w').write('of any run')
json.dump(dict(n=5, s=yaml.safe_load(open('params.yaml'))['base']['seed']), open('data/metrics/cut.json', 'w'))
"""

def test_seeds_run_in_clones_that_keep_what_they_ran(tmp_path):
    root = project(tmp_path/"p", "")
    (root/"dvc.yaml").write_text(yaml.safe_dump(dict(stages=dict(cut=STAGE))))
    (root/"make.py").write_text(MAKE)
    (root/".gitignore").write_text("/data/*\n!/data/metrics\n/ran\n")
    do = lambda *cs: [subprocess.run(c.split(), cwd=root, check=True, env=own_env()) for c in cs]
    commit = "git add -A", "git -c user.name=a -c user.email=a@b commit -qm all"
    do("git init -q", "dvc init -q", *commit)
    r = shell(root, "seeds", "--of", "7")
    assert r.returncode==1 and "is not the run of this code and these parameters (first in cut): `make repro` first" in r.stderr, r.stderr
    do("dvc repro -q", *commit)
    (root/"data/big.txt").unlink(), shutil.rmtree(root/".dvc/cache") # as in a clone, which has the numbers alone
    before = (root/"params.yaml").read_bytes()
    for of,mean in (("1,5", {"cut.s":3., "cut.s_sd":2., "seeds":3}), ("5", {"cut.s":4., "cut.s_sd":1.4142, "seeds":2})):
        r = shell(root, "seeds", "--of", of, "--jobs", "2")
        assert r.returncode==0, r.stderr
        assert json.loads((root/"data/metrics/seeds.json").read_text())=={"cut.n":5., "cut.n_sd":0.} | mean
        assert (root/"data/seeds/5/ran").read_text()=="x"
        (root/"more.txt").write_text(of)
        do(*commit)
    shutil.rmtree(root/"data/seeds")
    assert shell(root, "seeds", "--of", "1").returncode==0 and not (root/"data/seeds").exists(), "its numbers are in git, so it is not run again"
    (root/"data/metrics/seeds/5.json").unlink()
    do(*commit)
    assert shell(root, "seeds", "--of", "5").returncode==0 and (root/"data/seeds/5/more.txt").read_text()=="5"
    (root/"data/metrics/seeds/5.json").unlink()
    do(*commit)
    assert shell(root, "seeds", "--of", "5").returncode==0 and (root/"data/seeds/5/ran").read_text()=="x", "the clone keeps what it ran"
    assert (root/"params.yaml").read_bytes()==before
    (root/"make.py").write_text("raise SystemExit('broken')")
    r = shell(root, "seeds", "--of", "1")
    assert r.returncode==1 and "first in cut" in r.stderr
    (root/"data/big.txt").write_text("of any run")
    do("dvc commit -q -f")
    r = shell(root, "seeds", "--of", "1")
    assert r.returncode==1 and "lacks the changes of make.py: commit them first" in r.stderr, r.stderr
    do(*commit)
    r = shell(root, "seeds", "--of", "1")
    assert r.returncode==1 and "dvc repro ended with" in r.stderr.splitlines()[-1] and "data/seeds/1.log" in r.stderr, r.stderr
