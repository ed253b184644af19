"The repository is in step with itself: notebooks, modules, README, site, requirements."
import ast, builtins, importlib, json, re, subprocess, sys, tomllib
import pytest
from conftest import ROOT, copy_tree, sh, tracked
from pathgen import cli

NBS = sorted((ROOT/'nbs').glob('*.ipynb'))
MODULES = sorted(p.stem for p in (ROOT/'pathgen').glob('[a-z]*.py'))

def cells(p): return json.loads(p.read_text())['cells']
def source(c): return ''.join(c['source'])

def changed(tree):
    "What differs in `tree` from its commit; the tree is put back."
    lines = sh('git', 'status', '--porcelain', cwd=tree).splitlines()
    sh('git', 'reset', '-q', '--hard', cwd=tree)
    sh('git', 'clean', '-fdq', cwd=tree)
    return lines

def test_notebooks_are_clean(tree):
    sh('nbdev-clean', cwd=tree)
    assert changed(tree)==[], 'run nbdev-clean'

def test_modules_are_in_step(tree):
    sh('nbdev-export', cwd=tree)
    assert changed(tree)==[], 'run nbdev-export; pathgen/ is never edited by hand'

def test_readme_is_in_step(tree):
    sh(sys.executable, 'docs/readme.py', cwd=tree)
    assert changed(tree)==[], 'run python docs/readme.py'

def test_numbers_of_the_readme_are_those_in_git():
    rows = re.findall(r'^\| (\w+) \| (\w+) \| ([\d.e-]+) \| ([^|]*)\| [^|]*\|$', (ROOT/'README.md').read_text(), re.M)
    assert len(rows) > 30
    said = {(s, k): float(v) for s, k, v, _ in rows}
    found = {(s, k): json.loads((ROOT/f'data/metrics/{s}.json').read_text())[k] for s, k in said}
    assert said == pytest.approx(found, rel=1e-4), 'render index: python docs/render.py index; python docs/readme.py'
    seeds = json.loads((ROOT/'data/metrics/seeds.json').read_text())
    over = {f'{s}.{k}': [float(x) for x in m.split(' ± ')] for s, k, _, m in rows if m.strip()}
    assert len(over) > 30
    for k, (mean, sd) in over.items(): assert (mean, sd) == pytest.approx((seeds[k], seeds[f'{k}_sd']), rel=.05), k

def test_means_over_seeds_are_those_of_the_runs_in_git():
    runs = [json.loads(p.read_text())['numbers'] for p in sorted((ROOT/'data/metrics/seeds').glob('*.json'))]
    assert runs and cli.seed_table([cli.numbers(ROOT), *runs])==json.loads((ROOT/'data/metrics/seeds.json').read_text()), 'pathgen seeds'

@pytest.mark.parametrize('nb', NBS, ids=lambda p: p.stem)
def test_notebook_is_small_and_whole(nb):
    assert nb.stat().st_size <= 300_000, 'draw its figures smaller'
    ids = [c['id'] for c in cells(nb)]
    assert len(ids)==len(set(ids))
    for c in cells(nb):
        if c['cell_type']!='code': continue
        assert not [o for o in c['outputs'] if o['output_type']=='error'], source(c)[:80]
        bare = [o for o in c['outputs'] if ''.join(o.get('data', {}).get('text/plain', '')).startswith('<Figure')
                and not any(k.startswith('image/') for k in o['data'])]
        assert not bare, f'a figure without its picture: {source(c)[:80]}'
        assert 'nbdev_export(' not in source(c), 'papermill would rewrite the modules in the middle of a run'

@pytest.mark.parametrize('nb', NBS, ids=lambda p: p.stem)
def test_exported_cells_are_small(nb):
    for c in cells(nb):
        if c['cell_type']!='code' or not re.search(r'^#\|\s*export', source(c), re.M): continue
        body = [l for l in source(c).splitlines() if l.strip() and not l.startswith('#|')]
        assert len(body) <= 40, f'{len(body)} lines: {body[0]}'

@pytest.mark.parametrize('nb', NBS, ids=lambda p: p.stem)
def test_first_cells_title_the_page(nb):
    md = next(source(c) for c in cells(nb) if c['cell_type']=='markdown')
    assert re.match(r'# .+\n\n> .+', md)

@pytest.mark.parametrize('nb', NBS, ids=lambda p: p.stem)
def test_what_a_run_executes_knows_its_names(nb):
    "A run passes over all cells but the parameters and those marked `#| run`: these must import what they use."
    runs = [source(c) for c in cells(nb) if c['cell_type']=='code' and ('parameters' in c['metadata'].get('tags', []) or re.match(r'#\| *run\b', source(c)))]
    tree = ast.parse('\n'.join(re.sub(r'^[%!].*', '', r, flags=re.M) for r in runs))
    known = {*dir(builtins), 'display'}
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.names[0].name == '*': known |= set(importlib.import_module(n.module).__all__)
        elif isinstance(n, (ast.Import, ast.ImportFrom)): known |= {(a.asname or a.name).split('.')[0] for a in n.names}
        elif isinstance(n, (ast.FunctionDef, ast.ClassDef)): known.add(n.name)
        elif isinstance(n, ast.arg): known.add(n.arg)
        elif isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load): known.add(n.id)
    assert not {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - known

def test_numbers_of_notebooks_are_unique():
    numbers = [p.stem.partition('_')[0] for p in NBS if p.stem!='index']
    assert len(numbers)==len(set(numbers))

def test_every_notebook_has_a_place_on_the_site():
    pages = set(re.findall(r'^(\w+)$', (ROOT/'docs/contents.md').read_text(), re.M))
    assert pages=={re.sub(r'^\d+_', '', p.stem) for p in NBS}

@pytest.mark.parametrize('module', MODULES)
def test_no_module_asks_for_the_label_or_the_overview_of_a_slide(module):
    assert 'associated_image' not in (ROOT/'pathgen'/f'{module}.py').read_text()

def test_import_is_light():
    code = f"import sys\nfor m in {MODULES}: __import__('pathgen.'+m)\n" \
           "print([m for m in ('torch','open_clip','transformers','sklearn','skimage','openslide','faiss') if m in sys.modules])"
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    assert r.stdout.strip()=='[]', 'import these inside the functions that need them'

@pytest.mark.parametrize('module', MODULES)
def test_public_functions_say_what_they_do(module):
    import ast
    for n in ast.parse((ROOT/'pathgen'/f'{module}.py').read_text()).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_'):
            assert ast.get_docstring(n), f'{module}.{n.name}'

def test_requirements_are_pinned():
    text = (ROOT/'requirements.txt').read_text()
    pins = re.findall(r'^([a-z0-9._-]+(?:\[[a-z,-]+\])?)==\S+', text, re.M|re.I)
    assert len(pins) > 100 and '--hash=sha256:' in text
    assert not re.search(r'^\s*(-i|--(extra-)?index-url|--find-links)\b', text, re.M), 'no index inside'
    have = {re.sub(r'[._-]+', '-', p.split('[')[0]).lower() for p in pins}
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    want = project['dependencies'] + [d for e in ('dev','docs') for d in project['optional-dependencies'][e]]
    names = {re.sub(r'[._-]+', '-', re.match(r'[\w.-]+', d)[0]).lower() for d in want}
    assert names <= have, f'compile requirements.txt anew: {sorted(names-have)}'

def test_licence_and_citation():
    import yaml
    assert 'Apache License' in (ROOT/'LICENSE').read_text()
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    assert cff['license']=='Apache-2.0' and any('PathGen-1.6M' in r['title'] for r in cff['references'])

def test_nothing_large_in_git():
    assert not [f.name for f in tracked() if f.stat().st_size > 1_000_000]
