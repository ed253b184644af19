"Kill and relaunch: a small campaign, two runs at once, Ctrl-C, what killed writers leave behind."
import json, os, platform, re, signal, subprocess, sys, time
import pandas as pd, pytest
from conftest import ROOT, sh, small_tree
from pathgen import chaos, core

@pytest.fixture(scope='module')
def tree(tmp_path_factory): return small_tree(tmp_path_factory.mktemp('chaos')/'tree')

def half_written(folder):
    "Names of temporary files and workshops in `folder`."
    return [str(p) for p in folder.rglob('*') if '.tmp' in p.name]

@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(campaign):
    m = json.loads((campaign/'data/metrics/chaos.json').read_text())
    assert m['kills']==3 and m['stages']==3 and m['stages_hit'] >= 2 and m['files_compared'] > 50 and m['items'] >= 2, m
    differ = [chaos.compare(f/'calm', f/'storm') for f in (campaign/'data/chaos').glob('*')]
    assert not any(m[k] for k in ('files_different', 'leftovers', 'items_done_again', 'processes_left')), (m, differ)
    runs = pd.read_csv(campaign/'data/metrics/chaos.csv')
    assert runs.kill.notna().sum()==m['kills'] and not (campaign/'data/chaos').exists()

def test_a_last_launch_that_finds_nothing_to_do_ends_the_campaign(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, 'clone', lambda tree, profile: (tree/'data').mkdir(parents=True))
    moments = pd.DataFrame(dict(stage=['tile'], fraction=[0.], everything=[True]))
    command = ['bash', '-c', """sleep 1; [ -e done ] || { touch done; echo "Running stage 'tile':"; sleep 60; }"""]
    runs = chaos.run_storm(tmp_path, None, dict(tile=1.), moments, command)
    last = runs.groupby('launch').tail(1).merge(moments[['everything']], left_on='kill', right_index=True, how='left')
    assert last.stage.tolist()==['tile', ''] and last.everything.tolist()[0] is True and last.kill.isna().tolist()==[False, True], runs

@pytest.mark.parametrize('name', ['short', 'deep'*20])
def test_workers_get_a_temporary_folder_whose_path_is_short_enough_for_sockets(tmp_path, name):
    tree = tmp_path/name/'calm'
    tree.mkdir(parents=True)
    code = "from multiprocessing import connection, util; import socket; socket.socket(socket.AF_UNIX).bind(connection.arbitrary_address('AF_UNIX')); print(util.get_temp_dir())"
    assert chaos.launch(tree, tmp_path/'log', [sys.executable, '-c', code]).wait()==0, (tmp_path/'log').read_text()
    assert str(tree.parent/'tmp') in (tmp_path/'log').read_text() or name!='short'

def start(tree, *cmd):
    "A command in a process group of its own that takes Ctrl-C, as in a terminal; a background job would ignore it."
    env = os.environ | {chaos.MARK: str(tree), 'PYTHONPATH': str(tree)}
    return subprocess.Popen(cmd, cwd=tree, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))

def wait_for(happens, process, seconds=60):
    end = time.time()+seconds
    while not happens() and time.time() < end and process.poll() is None: time.sleep(.05)
    assert happens() and process.poll() is None

@pytest.mark.slow
def test_two_runs_at_once_and_ctrl_c(tree):
    run = start(tree, 'dvc', 'repro', 'phantom')
    try:
        wait_for(lambda: (tree/'data/phantom/.tmp').exists(), run)
        second = sh('pathgen', 'run', 'phantom', cwd=tree, check=False)
        assert second.returncode==1 and re.fullmatch(r'pathgen run: stage phantom of data is being written by process \d+ on \S+: wait for it, .*\n', second.stdout)
        second = sh('dvc', 'repro', 'phantom', cwd=tree, check=False)
        assert second.returncode and 'busy, it is being blocked by' in second.stdout
        at = time.time()
        os.killpg(run.pid, signal.SIGINT)
        said = run.communicate(timeout=60)[0]
        assert time.time()-at < 20
    finally: chaos.put_down_all(tree)
    assert said.count('stopped: what is finished stays') == 1 and 'Traceback' not in said, said
    assert half_written(tree/'data') == [] and chaos.cut_locks(tree) == []

def test_doctor_names_a_lock_file_that_was_cut_off(tree):
    lock = tree/'.dvc/tmp/rwlock'
    core.write_text('{"write": {"data', lock)
    assert 'fail  .dvc/tmp/rwlock was cut off by a kill: delete it' in sh('pathgen', 'doctor', cwd=tree, check=False).stdout
    lock.unlink()

KILLED = "import os, sys; from pathgen.core import atomic\nwith atomic(sys.argv[1]) as tmp: tmp.write_text('half'); os.kill(os.getpid(), 9)"

def test_the_temporary_file_of_a_killed_writer_goes(tmp_path):
    subprocess.run([sys.executable, '-c', KILLED, tmp_path/'a.txt'], env=os.environ | {'PYTHONPATH': str(ROOT)})
    left = half_written(tmp_path)
    assert len(left) == 1
    mine = left[0].rpartition('-')[0] + f'-{os.getpid()}.tmp.txt'
    (tmp_path/mine).write_text('of a process that lives')
    core.write_text('whole', tmp_path/'b.txt')
    assert half_written(tmp_path) == [mine]

@pytest.mark.parametrize('name', ['elsewhere', platform.node()])
def test_the_temporary_file_of_a_writer_that_may_live_stays(tmp_path, monkeypatch, name):
    "One on another machine that shares the folder, and one of another user."
    p = subprocess.Popen(['true'])
    p.wait()
    def kill(*a): raise PermissionError
    if name != 'elsewhere': monkeypatch.setattr(core.os, 'kill', kill)
    theirs = tmp_path/f'.{core.digest("a.txt")}.{name}-{p.pid}.tmp.txt'
    theirs.write_text('half')
    core.write_text('whole', tmp_path/'b.txt')
    assert theirs.exists()
