"Kernels that are forked: who they listen to, when they end, what their nursery does."
import signal, subprocess, sys, time
import psutil, pytest
from conftest import ROOT
from pathgen.warm import NURSERY
from test_cli import own_env, project, shell

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")

def warm(*cmd):
    "`pathgen warm -- ...` as a process of its own, its nursery, and the command."
    p = subprocess.Popen([sys.executable, "-c", "from pathgen.cli import main; main()", "warm", "--", *cmd], cwd=ROOT, env=own_env())
    end, children = time.time()+60, []
    while len(children) < 2 and time.time() < end and p.poll() is None: children = psutil.Process(p.pid).children()
    return p, *sorted(children, key=lambda c: c.create_time())

def gone(process):
    "Whether a process ends within a minute."
    try: process.wait(60)
    except psutil.TimeoutExpired: return False
    return True

def test_it_ends_as_its_command_ends():
    assert shell(ROOT, "warm", "--", "sh", "-c", "exit 3").returncode==3
    assert shell(ROOT, "warm", "--", "sh", "-c", "kill -9 $$").returncode==137

@pytest.mark.parametrize("sig,status", [(signal.SIGKILL,-9), (signal.SIGTERM,143)])
def test_the_nursery_ends_with_it(sig, status):
    p, nursery, sleeper = warm("sleep", "600")
    while sleeper.name()!="sleep": time.sleep(.05)
    p.send_signal(sig)
    assert p.wait(60)==status and gone(nursery)
    if status > 0: assert gone(sleeper), "a request to end goes on to the command"
    else: sleeper.kill()

def test_a_nursery_that_is_gone_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(NURSERY, str(tmp_path/"none"))
    r = shell(project(tmp_path/"p", "1"), "run", "cut")
    assert r.returncode==1 and r.stderr=="pathgen run: the process that `pathgen warm` keeps for kernels is gone: run the command again\n"

def test_a_kernel_reads_the_code_and_the_environment_of_the_one_who_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("WHO", "me")
    root = project(tmp_path/"p", "import os, sys, pathgen\nopen(f'{data}/out.txt','w').write(' '.join([os.environ['WHO'], pathgen.__file__, str('torch' in sys.modules), os.getcwd()]))")
    (root/"data").mkdir()
    assert shell(root, "run", "cut").returncode==0
    assert (root/"data/out.txt").read_text()==f"me {ROOT/'pathgen/__init__.py'} True {root/'nbs'}"
