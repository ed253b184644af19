"params.yaml, profiles, parameters cells and dvc.yaml say the same."
import ast, os, re
from pathlib import Path
import pytest, yaml
from conftest import ROOT
from pathgen import cli
from pathgen.core import PathgenError

PROFILES = {'params.yaml': ROOT/'params.yaml', **{p.name: p for p in sorted((ROOT/'profiles').glob('*.yaml'))}}
PARAMS = {n: yaml.safe_load(p.read_text()) for n,p in PROFILES.items()}
DVC = yaml.safe_load((ROOT/'dvc.yaml').read_text())['stages']
NOTEBOOKS = cli.stages(ROOT)

def imports(path):
    "The modules of the package that `path` imports anywhere, lazily or not."
    found = set()
    for n in ast.walk(ast.parse(path.read_text())):
        if isinstance(n, ast.ImportFrom):
            if n.level: names = [n.module] if n.module else [a.name for a in n.names]
            elif n.module=='pathgen': names = [a.name for a in n.names]
            elif n.module and n.module.startswith('pathgen.'): names = [n.module.split('.')[1]]
            else: names = []
        elif isinstance(n, ast.Import): names = [a.name.split('.')[1] for a in n.names if a.name.startswith('pathgen.')]
        else: names = []
        found |= {x.split('.')[0] for x in names}
    return {x for x in found if (path.parent/f'{x}.py').exists()}

def closure(module):
    "`module` and every module of the package it imports, directly or not."
    seen, todo = set(), [module]
    while todo:
        m = todo.pop()
        if m not in seen: seen.add(m); todo += imports(ROOT/'pathgen'/f'{m}.py')
    return seen

def flat(entries): return [e if isinstance(e, str) else next(iter(e)) for e in entries]

def module_of(stage):
    return re.search(r'default_exp\s+(\w+)', NOTEBOOKS[stage].read_text())[1]

def test_profiles_are_there(): assert {'smoke.yaml','paper.yaml','gpu.yaml'} <= set(PROFILES)

def test_profiles_have_the_same_keys():
    want = {s: set(d) for s,d in PARAMS['params.yaml'].items()}
    for name, p in PARAMS.items(): assert {s: set(d) for s,d in p.items()} == want, name

def test_profiles_say_the_same_of_each_parameter():
    for name, p in PROFILES.items():
        missing = [l for l in p.read_text().splitlines() if re.match(r'  \w+:', l) and '#' not in l]
        assert not missing, f'{name}: no comment says what this is: {missing}'

@pytest.mark.parametrize('name', PARAMS)
def test_no_forbidden_names_or_numbers_as_text(name):
    for s, d in PARAMS[name].items():
        assert not {'size','nfiles'} & set(d), f'DVC ignores a parameter of this name: {s}'
        for k, v in d.items():
            assert not (isinstance(v, str) and re.fullmatch(r'[\d.]+e[+-]?\d+', v)), f'{s}.{k}: {v} is text to YAML'

@pytest.mark.parametrize('name', PARAMS)
def test_the_guard_of_instruct_points_at_what_models_are_examined_on(name):
    p, at = PARAMS[name], lambda base, f='': Path(os.path.normpath(ROOT/'nbs'/base/f))
    data, inside = p['base']['data'], lambda f, folders: any(f.is_relative_to(d) for d in folders)
    guarded = [at(data, f) for f in p['instruct']['evaluation_images']]
    for f in [*(s.partition('=')[2] for s in p['zeroshot']['sets']), p['pathmmu']['folder']]:
        assert inside(at(data, f), guarded), f'{name}: instruct.evaluation_images leaves out {f}'
    for s in p['mil']['sets']: assert inside(at(data, s.partition('=')[2]), [at(p['mil_slides']['folder'])]), f'{name}: mil_slides does not read {s}'
    tables = [at(data, t) for t in p['instruct']['evaluation_slides']]
    assert at(p['mil_slides']['data'], 'slides.parquet') in tables, f'{name}: instruct.evaluation_slides leaves out the slides of mil_slides'

@pytest.mark.parametrize('name', PARAMS)
@pytest.mark.parametrize('stage', DVC)
def test_section_fits_the_parameters_cell(stage, name):
    cli.check_params(stage, PARAMS[name], NOTEBOOKS[stage], name)

def test_every_stage_has_its_places():
    assert set(DVC) == set(PARAMS['params.yaml'])-{'base', 'speed', 'real', 'fuzz', 'chaos'}, 'benchmarks and the page on real slides are no stages of the pipeline'
    for stage, d in DVC.items():
        assert stage in NOTEBOOKS and d['cmd'] == f'pathgen run {stage}'

@pytest.mark.parametrize('stage', DVC)
def test_deps_list_every_module_used(stage):
    modules = closure(module_of(stage))
    data = {p.name for p in (ROOT/'pathgen').iterdir() if p.is_file() and p.suffix!='.py'}
    reads = {d for d in data for m in modules if d in (ROOT/'pathgen'/f'{m}.py').read_text()}
    want = {f'pathgen/{m}.py' for m in modules} | {f'pathgen/{d}' for d in reads}
    have = {d for d in DVC[stage]['deps'] if d.startswith('pathgen/')}
    assert have == want, f'missing {sorted(want-have)}, not used {sorted(have-want)}'

@pytest.mark.parametrize('stage', DVC)
def test_params_of_stage(stage):
    own = DVC[stage]['params']
    assert stage in own
    declared = cli.parameters(NOTEBOOKS[stage])
    for p in own:
        section, _, key = p.partition('.')
        assert section==stage or (section=='base' and key in declared), f'{stage} depends on {p} and does not read it'
    for key in {'seed','device'} & set(declared): assert f'base.{key}' in own, f'{stage} reads base.{key} and does not depend on it'

@pytest.mark.parametrize('stage', DVC)
def test_outs_hold_run_and_metrics(stage):
    nb = NOTEBOOKS[stage]
    name = nb.stem if nb.stem.partition('_')[2]==stage else f'{nb.stem}.{stage}'
    assert f'data/runs/{name}.ipynb' in flat(DVC[stage]['outs'])
    module = module_of(stage)
    source = (ROOT/'pathgen'/f'{module}.py').read_text()
    writes = f'write_metrics("{stage}"' in source or 'write_metrics(name,' in source if module==stage else True
    assert writes == bool(DVC[stage].get('metrics')), f'{stage} writes metrics and does not say so, or the other way round'
    for m in DVC[stage].get('metrics', []):
        assert isinstance(m, dict) and list(m.values())==[{'cache': False}], f'{m} belongs into git: cache: false'

def test_every_input_has_one_maker_that_comes_before():
    made = set()
    for stage, d in DVC.items():
        for dep in d['deps']:
            if dep.startswith('data/') and not (ROOT/dep).is_file():
                assert any(dep==m or dep.startswith(m+'/') or m.startswith(dep+'/') for m in made), f'{stage}: nothing makes {dep}'
        outs = flat(d.get('outs', []) + d.get('metrics', []))
        assert not made & set(outs)
        made |= set(outs)

def test_no_circles():
    for stage in DVC:
        m = module_of(stage)
        if m == 'train_agent': continue # teaches the agents of other stages, with their own roles and code; nobody imports it
        others = {module_of(s) for s in DVC} - {m}
        assert not others & closure(m), f'{m} imports another stage: {others & closure(m)}'

STAGES = sorted(set(PARAMS['params.yaml'])-{'base'})
ONCE = {s: cli.parameters(NOTEBOOKS[s]) for s in STAGES}
KEYS = [(s, k) for s in STAGES for k in PARAMS['params.yaml'][s] if k not in cli.BASE] + [('tile', f'base.{k}') for k in ('seed', 'workers', 'max_failed')]

def declared(stage, key): return cli.BASE[key[5:]] if key.startswith('base.') else ONCE[stage][key]

def refused(stage, key, monkeypatch, value=None, remove=False, name=None):
    "The line that a change of one key of params.yaml ends in."
    monkeypatch.setattr(cli, 'parameters', lambda nb: ONCE[stage])
    section, key = ('base', key[5:]) if key.startswith('base.') else (stage, key)
    p = {s: dict(d) for s,d in PARAMS['params.yaml'].items()}
    if name or remove: old = p[section].pop(key)
    if name: p[section][name] = old
    elif not remove: p[section][key] = value
    with pytest.raises(PathgenError) as e: cli.check_params(stage, p, NOTEBOOKS[stage])
    assert '\n' not in str(e.value)
    return str(e.value)

@pytest.mark.parametrize('stage, key', KEYS)
def test_a_wrong_key_or_value_is_refused_by_name(stage, key, monkeypatch):
    full, (default, says) = key if '.' in key else f'{stage}.{key}', declared(stage, key)
    bare, takes = full.partition('.')[2], cli.kind(default, says)
    if bare in ONCE[stage]: assert f'{full} is missing: {takes}' in refused(stage, key, monkeypatch, remove=True)
    line = refused(stage, key, monkeypatch, name=bare+bare[-1])
    assert f'{full}{bare[-1]} is not a parameter' in line and f'did you mean {bare}?' in line
    for value in ({'a': 1}, [[1]], *([] if 'text' in takes or 'one of' in takes else ['abc']), *([] if 'true' in takes else [True])):
        assert f'{full} is {value!r}, but takes {takes}' in refused(stage, key, monkeypatch, value)

def limits():
    for stage, key in KEYS:
        default, says = declared(stage, key)
        m, one = cli._range.search(says), default[0] if isinstance(default, list) and default else default
        if m: outside = [float('nan')] + [v for v in (float(m[2])-1, float(m[3])+1) if v!=float('inf')]
        else: outside = ['no such name'] if cli.choices(says) else []
        for v in outside: yield stage, key, [v] if isinstance(default, list) else int(v) if isinstance(one, int) and v==v else v

@pytest.mark.parametrize('stage, key, value', list(limits()))
def test_a_value_out_of_range_is_refused_by_name(stage, key, value, monkeypatch):
    full = key if '.' in key else f'{stage}.{key}'
    assert f'{full} is {value!r}, but takes {cli.kind(*declared(stage, key))}' in refused(stage, key, monkeypatch, value)

@pytest.mark.parametrize('stage, key', KEYS)
def test_every_number_has_its_range_also_in_the_params_files(stage, key):
    default, says = declared(stage, key)
    if type(default) in (int, float): assert cli._range.search(says) or cli.choices(says), f'{stage}.{key}: state its range, as in [0, 1]'
    limit = re.search(r'[\[(]-?[\d.]+, [^\])]+[\])]( or null)?|one of \S+', says)
    if not limit: return
    section, key = ('base', key[5:]) if key.startswith('base.') else (stage, key)
    for name, p in PROFILES.items():
        part = re.search(rf'^{section}:\n((?:[ #].*\n|\n)*)', p.read_text(), re.M)[1]
        line = re.search(rf'^  {key}:.*', part, re.M)[0]
        assert limit[0] in line.partition(' # ')[2], f'{name}: {section}.{key} says {line!r}, the notebook {limit[0]}'

@pytest.mark.parametrize('name', PARAMS)
def test_the_budget_suffices_for_the_first_try_of_every_endpoint(name):
    p, each_pair = PARAMS[name], dict(describe=1, revise=.6, summarize=2)
    teach = sum(s['pairs']*each_pair[r] for r in each_pair if (s := p[f'{r}_train'])['provider'].startswith('openai:'))
    ask = sum(p['instruct'][k] for k in ('choice_images','dialogue_images')) if p['instruct']['provider'].startswith('openai:') else 0
    assert teach + ask <= p['base']['max_requests']
    assert not [s for s in ('reports','attributes','describe','revise','summarize') if p[s]['provider'].startswith('openai:')], 'count these, too'

@pytest.mark.parametrize('stage', cli.OWN_ROOT)
def test_a_stage_that_needs_a_root_of_its_own_is_refused_without(stage, monkeypatch):
    assert f'{stage}.data is missing' in refused(stage, 'data', monkeypatch, remove=True)

@pytest.mark.parametrize('name', PARAMS)
def test_agents_that_a_run_trains_are_there_before_they_work(name):
    stages, p = yaml.safe_load((ROOT/'dvc.yaml').read_text())['stages'], PARAMS[name]
    trained = {o if isinstance(o, str) else [*o][0]: s for s,v in stages.items() for o in v['outs']}
    for stage in ('describe','revise','summarize'):
        folder = f'data/models/{stage}'
        assert trained[folder]==f'{stage}_train' and folder in stages[stage]['deps']
        if p[stage]['provider']!='builtin' and not p[stage]['provider'].startswith('openai:'): assert p[stage]['provider']==f'hf:../{folder}'
    assert 'data/models/describe' in stages['revise_train']['deps'] and 'data/models/describe' in stages['summarize_train']['deps']
