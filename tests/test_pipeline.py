"The smoke profile end to end in a copy of the tree, and what small changes set off afterwards."
import hashlib, json, re, shutil, sys
from pathlib import Path
import pandas as pd, pytest, yaml
from conftest import ROOT, sh

pytestmark = pytest.mark.slow
STAGES = yaml.safe_load((ROOT/'dvc.yaml').read_text())['stages']

def ran(log): return re.findall(r"^Running stage '(\w+)'", log, re.M)

def edit_params(tree, **sections):
    "Write values into params.yaml of `tree`."
    p = tree/'params.yaml'
    params = yaml.safe_load(p.read_text())
    for s, d in sections.items():
        assert set(d) <= set(params[s])
        params[s].update(d)
    p.write_text(yaml.safe_dump(params, sort_keys=False))

def files(folder):
    "Digest and time of change of each visible file."
    visible = lambda p: not any(x.startswith('.') for x in p.relative_to(folder).parts)
    return {str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
            for p in sorted(folder.rglob('*')) if p.is_file() and visible(p)}

def test_every_stage_runs(smoke): assert ran(smoke.log)==list(STAGES)

METRICS = {'tile': 'tissue_iou', 'reports': 'findings_kept measurements_left',
    'select': 'lesion_precision_report lesion_precision_random class_coverage', 'describe': 'precision recall',
    'revise': 'precision_before precision_after recall_before recall_after',
    'summarize': 'within_77 findings_kept findings_per_caption words_mean', 'pairs': 'pairs slides sources'}

@pytest.mark.parametrize('stage', METRICS)
def test_metrics_hold_the_numbers_asked_for(smoke, stage):
    found = json.loads((smoke.data/f'metrics/{stage}.json').read_text())
    assert set(METRICS[stage].split()) <= set(found)
    assert all(isinstance(v, (int,float)) for v in found.values())

TABLES = {'slides': 'slide_id path patient_id source project width height mpp mpp_from objective_power vendor quickhash report_id status error',
    'reports': 'report_id patient_id part text n_words provider model prompt_hash', 'attributes': 'source attribute provider',
    'patches': 'patch_id slide_id x y px mpp origins prompt score cluster kept similar_to similarity',
    'text/descriptions': 'patch_id slide_id text provider model prompt_hash decoding',
    'text/revisions': 'patch_id slide_id text edits provider model prompt_hash decoding',
    'text/captions': 'patch_id slide_id text n_tokens provider model prompt_hash decoding'}

@pytest.mark.parametrize('name', TABLES)
def test_tables_have_their_columns(smoke, name):
    df = pd.read_parquet(smoke.data/f'{name}.parquet')
    assert len(df) and set(TABLES[name].split()) <= set(df.columns)
    if 'patch_id' in df: assert df.patch_id.is_unique

def test_pairs_are_whole_and_split_by_patient(smoke):
    index = pd.read_parquet(smoke.data/'pairs/index.parquet')
    patches = pd.read_parquet(smoke.data/'patches.parquet')
    captions = pd.read_parquet(smoke.data/'text/captions.parquet')
    assert set(index.patch_id)==set(captions.patch_id)==set(patches.patch_id[patches.kept])
    assert index.groupby(index.slide_id.str[:12]).split.nunique().max()==1
    assert (captions.n_tokens<=77).all()

def test_second_run_does_nothing(smoke):
    assert ran(sh('dvc', 'repro', cwd=smoke.tree))==[]

def test_where_and_within_which_bounds_the_loop_runs_changes_nothing(smoke):
    params = (smoke.tree/'params.yaml').read_text()
    edit_params(smoke.tree, base=dict(engine='ray', item_minutes=7, item_gb=6, workers=1))
    assert ran(sh('dvc', 'repro', cwd=smoke.tree))==[]
    (smoke.tree/'params.yaml').write_text(params)

def test_prose_runs_nothing(smoke):
    for p in smoke.tree.glob('nbs/*.ipynb'):
        nb = json.loads(p.read_text())
        nb['cells'].append(dict(cell_type='markdown', id='prose', metadata={}, source='A sentence more.'))
        p.write_text(json.dumps(nb))
    assert ran(sh('dvc', 'repro', cwd=smoke.tree))==[]
    sh('git', 'checkout', '-q', 'nbs', cwd=smoke.tree)

def test_relaunched_stage_keeps_what_is_done(smoke):
    "`tile` again after one slide's patches were lost: that slide alone is redone, with the same bytes."
    tiles, before = smoke.data/'tiles', files(smoke.data/'tiles')
    lost = sorted(tiles.glob('*.h5'))[0]
    lost.unlink()
    executed = (smoke.data/'runs/20_tile.ipynb').read_bytes()
    sh('pathgen', 'run', 'tile', cwd=smoke.tree)
    after = files(tiles)
    assert {n: d for n,(d,_) in after.items()}=={n: d for n,(d,_) in before.items()}
    assert [n for n in after if n.endswith('.h5') and after[n]!=before[n]]==[lost.name]
    assert (smoke.data/'runs/20_tile.ipynb').read_bytes()==executed

SAME = {'pairs': ('33_pairs', 'pairs'), 'describe_train': ('35_train_agent.describe_train', 'models/describe'), 'llava': ('42_llava', 'models/llava')}

@pytest.mark.parametrize('stage', SAME)
def test_same_run_writes_the_same_bytes(smoke, stage):
    "Also when later stages have left their numbers by now."
    name, folder = SAME[stage]
    before = {n: d for n,(d,_) in files(smoke.data/folder).items()}
    executed = (smoke.data/f'runs/{name}.ipynb').read_bytes()
    sh('pathgen', 'run', stage, cwd=smoke.tree)
    assert before and {n: d for n,(d,_) in files(smoke.data/folder).items()}==before
    assert (smoke.data/f'runs/{name}.ipynb').read_bytes()==executed

def test_the_trained_agents_do_the_work_of_their_stages(smoke, tmp_path, monkeypatch):
    "On one slide, each by its agent of the run; words are put into the mouths of reviser and summariser, which babble after so short a training: one operation fits, the other is refused and counted."
    from pathgen import chat, describe, lmm, revise, summarize
    patches = pd.read_parquet(smoke.data/'patches.parquet')
    one = patches[patches.slide_id==patches.slide_id[patches.kept].iloc[0]]
    one.to_parquet(tmp_path/'patches.parquet')
    for f in ('patches', 'phantom', 'slides.parquet'): (tmp_path/f).symlink_to(smoke.data/f)
    agent, generate = lambda role: f'hf:{smoke.data}/models/{role}', lmm.Lmm.generate
    mouth = dict(revise='seen: mucin. do: delete: cartilage; add: mucin', summarize='Mucin is seen.')
    says = lambda self, *a: [mouth.get(Path(self.name).name, s) for s in generate(self, *a)]
    monkeypatch.setattr(lmm.Lmm, 'generate', says)
    how = dict(data=tmp_path, workers=2, max_failed=1., device='cpu')
    said = describe.run_describe(provider=agent('describe'), seed=0, mpp_if_missing=None, **how)[0].set_index('patch_id')
    revised = revise.run_revise(provider=agent('revise'), seed=0, mpp_if_missing=None, trials_per_slide=1, **how)[0].set_index('patch_id')
    captions = summarize.run_summarize(provider=agent('summarize'), **how)[0].set_index('patch_id')
    for role, df in ((describe.DESCRIBE, said), (revise.REVISE, revised), (summarize.SUMMARISE, captions)):
        name = role.stage or role.name
        folder = smoke.data/'models'/name
        told = dict(provider=agent(name), model=lmm.weights_hash(folder), prompt_hash=role.prompt_hash, decoding='greedy, 256 tokens at most')
        assert len(df) and (df[list(told)]==pd.Series(told)).all(axis=None) and df.text.str.strip().ne('').all(), name
    failed = {f: len(pd.read_parquet(p)) for f in ('descriptions','revisions','captions') if (p := tmp_path/f'text/{f}_failed.parquet').exists()}
    assert len(said) + failed.get('descriptions', 0)==one.kept.sum() and len(captions) + sum(failed.values())==one.kept.sum()
    for r in revised.itertuples():
        ops = [revise.Operation(**o) for o in json.loads(r.edits)]
        assert revise.carry_out(said.text[r.Index], ops)[0]==r.text and r.refused==1 and [o.after for o in ops]==['mucin']
    assert json.loads((tmp_path/'metrics/revise.json').read_text())['refused']==revised.refused.sum()
    assert (captions.n_tokens<=77).all() and captions.text.map(summarize.count_tokens).eq(captions.n_tokens).all()

def test_a_cluster_gives_the_same_bytes(cluster, smoke):
    said = cluster.splitlines()
    assert said[-1]=='killed 1' and [l for l in said if l in STAGES]==['tile', 'embed', 'select', 'describe'], said
    for name in ('tiles', 'features', 'patches', 'text/descriptions'):
        digests = lambda root: {n: d for n,(d,_) in files(root/name).items()}
        assert digests(smoke.tree/'ray')==digests(smoke.data) and digests(smoke.data), name
    shutil.rmtree(smoke.tree/'ray')

def test_site_builds_with_the_outputs_of_the_run(site):
    assert (site/'index.html').exists() and 'tile' in (site/'searchindex.js').read_text()
    assert list((site/'_images').glob('*.png'))
    assert (site/'select.html').read_text().count('<img') > 6, 'examples keep their figures, which a run passes over'
    outside = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+')
    assert not [m for p in site.glob('*.html') for m in outside.findall(p.read_text())], 'the site must work offline'

def test_changed_parameter_runs_what_depends_on_it(smoke):
    "`revise` measures on fewer patches and writes the same texts, so `summarize` stays; `pairs` cuts smaller shards."
    edit_params(smoke.tree, revise=dict(trials_per_slide=1), pairs=dict(pairs_per_shard=20))
    assert ran(sh('dvc', 'repro', cwd=smoke.tree))==['revise','pairs']
    assert pd.read_parquet(smoke.data/'pairs/index.parquet').groupby('shard').size().max() <= 20
