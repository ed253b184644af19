"Shared by all tests: the root of the repository, the real data beside it, copies of the tree to run things in."
import os, shutil, signal, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
import pytest, yaml

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent/'shared/data'
sys.path.insert(0, str(ROOT))
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
from pathgen.warm import IMPORTS, warm_kernels

def tracked(root=ROOT):
    "Files of the working tree that git tracks or would track; everything but the products when there is no git."
    r = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=root, capture_output=True, text=True)
    if r.returncode==0: files = [root/f for f in r.stdout.split('\0') if f]
    else:
        off = {'.venv','.git','data','_build','__pycache__','tmp','cache'}
        files = [p for p in root.rglob('*') if not off & set(p.relative_to(root).parts)] + [*root.glob('data/*.csv')]
    return [f for f in files if f.is_file()]

def copy_tree(dst):
    "A copy of the working tree at `dst`, a git repository of its own."
    for f in tracked():
        to = dst/f.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(f, to)
    git = ['git', '-c', 'user.name=test', '-c', 'user.email=test@example.org', '-c', 'commit.gpgsign=false']
    for args in (['init', '-q'], ['add', '-A'], ['commit', '-q', '--no-verify', '-m', 'copy']):
        subprocess.run(git+args, cwd=dst, check=True, capture_output=True)
    return dst

def own(tree):
    "The environment in which commands of `tree` run with that tree's own package."
    env = {**os.environ, 'PYTHONPATH': str(tree), 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'}
    env.pop('IN_TEST', None)
    return env

def fail(cmd, ended, text): pytest.fail(f"{' '.join(map(str, cmd))} ended with {ended}:\n{text[-12000:]}", pytrace=False)

def sh(*cmd, cwd, check=True, timeout=1200):
    "Run a command of the environment in the tree `cwd`; returns its output, both streams."
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, env=own(cwd), stdin=subprocess.DEVNULL, timeout=timeout,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    if check and r.returncode: fail(cmd, r.returncode, r.stdout)
    return r.stdout if check else r

BESIDE = ['smoke', 'site', 'cluster', 'campaign', 'examples'] # Fixtures of what runs beside the tests, one after the other; tests of the last one come last

def pytest_collection_modifyitems(items): items.sort(key=lambda i: max((1+BESIDE.index(f) for f in i.fixturenames if f in BESIDE), default=0))

@pytest.fixture(scope='session', autouse=True)
def warm():
    "The kernels of all commands come from one nursery, and the workers of the tests' own loops from one fork server that imported as much, where the machine can fork."
    if not sys.platform.startswith('linux'): return (yield)
    forkserver.set_forkserver_preload([*IMPORTS, 'pathgen.core'])
    forkserver.ensure_running()
    with warm_kernels(): yield

def beside(cmd, cwd, log, living):
    "Run a command with its output in a file, in a process group that `living` keeps; returns it, its status and what it said."
    with open(log, 'wb') as f: p = subprocess.Popen(cmd, cwd=cwd, env=own(cwd), stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
    living.append(p)
    return cmd, p.wait(), log.read_text(errors='replace')

def good(job):
    "What a command beside the tests said, if it ended well."
    cmd, ended, text = job.result(3600)
    if ended: fail(cmd, ended, text)
    return text

def small_tree(dst):
    "A copy of the working tree with a profile that takes seconds: two small slides of one organ."
    p = yaml.safe_load((copy_tree(dst)/'profiles/smoke.yaml').read_text())
    p['phantom'] |= dict(organs=['colon'], patients=2, slide_px=2016, pairs_pathcap=12, pairs_quilt=12, pairs_openpath=12)
    p['chaos'] |= dict(profile='../params.yaml', kills=3, targets=['tile'], warm=False)
    (dst/'params.yaml').write_text(yaml.safe_dump(p, sort_keys=False))
    return dst

@pytest.fixture(scope='session', autouse=True)
def started(warm, request, tmp_path_factory):
    "The fixtures of `BESIDE`, running beside the tests from the first one on if a test looks at them."
    folder, living, names = tmp_path_factory.mktemp('beside'), [], {f for i in request.session.items for f in i.fixturenames}
    pool, told = ThreadPoolExecutor(1), SimpleNamespace(tree=folder/'tree', small=folder/'small', jobs={})
    def start(name, cmd, cwd): told.jobs[name] = pool.submit(beside, cmd, cwd, folder/f'{name}.log', living)
    if 'smoke' in names:
        copy_tree(told.tree)
        sh('pathgen', 'profile', 'smoke', cwd=told.tree)
        start('smoke', ['dvc', 'repro'], told.tree)
    if 'site' in names: start('site', [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', '.', '_build/html'], told.tree/'docs')
    if 'cluster' in names: start('cluster', [sys.executable, 'tests/cluster.py'], told.tree)
    if 'campaign' in names: start('campaign', ['pathgen', 'run', 'chaos'], small_tree(told.small))
    if 'examples' in names: start('examples', ['nbdev-test', '--n-workers', '1', '--timing'], ROOT)
    yield told
    pool.shutdown(wait=False, cancel_futures=True)
    for p in living:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)

@pytest.fixture(scope='session')
def smoke(started):
    "A tree in which the smoke profile has run, and its log; nothing works in it any more."
    text = good(started.jobs['smoke'])
    for job in ('site', 'cluster'):
        if job in started.jobs: started.jobs[job].result(3600)
    return SimpleNamespace(tree=started.tree, data=started.tree/'data', log=text)

@pytest.fixture(scope='session')
def site(smoke, started):
    "The folder of the site that was built of the smoke run."
    good(started.jobs['site'])
    return started.tree/'docs/_build/html'

@pytest.fixture(scope='session')
def cluster(started):
    "What the stages on a cluster printed."
    pytest.importorskip('ray')
    return good(started.jobs['cluster'])

@pytest.fixture(scope='session')
def campaign(started):
    "A small tree in which a campaign of kills has run."
    good(started.jobs['campaign'])
    return started.small

@pytest.fixture(scope='session')
def examples(started):
    "The job that runs the examples in the notebooks."
    return started.jobs['examples']

@pytest.fixture(scope='session')
def real():
    "The folder of real slides and reports; tests that need it are skipped where it is absent."
    if not REAL.is_dir(): pytest.skip(f'no real data at {REAL.parent.name}/{REAL.name} beside the repository')
    return REAL

@pytest.fixture(scope='session')
def tree(tmp_path_factory):
    "A copy of the working tree."
    return copy_tree(tmp_path_factory.mktemp('pathgen')/'tree')
