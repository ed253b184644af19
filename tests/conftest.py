"Shared by all tests: the root of the repository, the real data beside it, copies of the tree to run things in."
import contextlib, os, shutil, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent/'shared/data'
sys.path.insert(0, str(ROOT))
from pathgen.warm import NURSERY, warm_kernels

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

def sh(*cmd, cwd, check=True, timeout=1200):
    "Run a command of the environment in the tree `cwd`; returns its output, both streams."
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, env=own(cwd), stdin=subprocess.DEVNULL, timeout=timeout,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    if check and r.returncode: pytest.fail(f"{' '.join(map(str, cmd))} ended with {r.returncode}:\n{r.stdout[-6000:]}", pytrace=False)
    return r.stdout if check else r

def pytest_configure(config):
    "The kernels of all commands come from one nursery, where the machine can fork; processes of xdist share it."
    if not sys.platform.startswith('linux') or NURSERY in os.environ: return
    stack = contextlib.ExitStack()
    stack.enter_context(warm_kernels())
    config.add_cleanup(stack.close)

FIRST = ['test_pipeline', 'test_repo', 'test_params'] # The file of the smoke run, which takes longest, and those that a change breaks soonest

def pytest_collection_modifyitems(items): items.sort(key=lambda i: FIRST.index(i.path.stem) if i.path.stem in FIRST else len(FIRST))

@pytest.fixture(scope='session')
def smoke(tmp_path_factory):
    "A tree in which the smoke profile has run, and its log."
    tree = copy_tree(tmp_path_factory.mktemp('smoke')/'tree')
    sh('pathgen', 'profile', 'smoke', cwd=tree)
    log = sh('dvc', 'repro', cwd=tree, timeout=3600)
    return SimpleNamespace(tree=tree, data=tree/'data', log=log)

@pytest.fixture(scope='session')
def real():
    "The folder of real slides and reports; tests that need it are skipped where it is absent."
    if not REAL.is_dir(): pytest.skip(f'no real data at {REAL.parent.name}/{REAL.name} beside the repository')
    return REAL

@pytest.fixture(scope='session')
def tree(tmp_path_factory):
    "A copy of the working tree."
    return copy_tree(tmp_path_factory.mktemp('pathgen')/'tree')
