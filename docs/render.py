"""Write outputs into the notebooks, for readers who see them on a forge: `python docs/render.py [NAME ...]`.

Definitions and examples are executed as `nbdev-test` does; the `#| run` cells take the outputs of the last
`dvc repro` from data/runs, where id and source agree. In a notebook over 290 kB the large pictures
become JPEGs, step by step smaller; one that stays too large is left as it was and named."""
import base64, io, os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from notebooks import directives, done_cells

root = Path(__file__).resolve().parent.parent
limit_kb = 290

def execute(path):
    "Notebook at `path` with fresh outputs of the cells that `nbdev-test` runs."
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb
    from nbdev.test import nb_test_cells
    os.environ.update(IN_TEST='1', PYTHONPATH=str(root))
    sys.path.insert(0, str(root)); os.chdir(root/'nbs')
    run = {c.id for c in nb_test_cells(path, ['notest','run'])}
    nb, shell = read_nb(path), CaptureShell(path, mpl_format='png')
    shell.run_all(nb, exc_stop=True, preproc=lambda c: c.id not in run)
    return nb

def take_run(nb, path):
    "Outputs of the `#| run` cells from the executed copy; returns how many cells have none."
    done, missing = done_cells(path, root/'data/runs'), 0
    for c in nb.cells:
        if 'run' not in directives(c): continue
        d = done.get(c.id)
        found = d is not None and d.source==c.source
        c.outputs = [o for o in d.outputs if o.get('name')!='stderr'] if found else []
        missing += not found
    return missing

def light(nb, most_kb, most_px, quality):
    "Re-encode the large pictures of a notebook."
    from PIL import Image
    for data in (o.get('data', {}) for c in nb.cells for o in c.get('outputs', [])):
        for kind in ('image/png','image/jpeg'):
            if len(data.get(kind, '')) <= most_kb*1000: continue
            im = Image.open(io.BytesIO(base64.b64decode(data.pop(kind)))).convert('RGB')
            im.thumbnail((most_px, 2*most_px))
            im.save(out := io.BytesIO(), 'JPEG', quality=quality, optimize=True)
            data['image/jpeg'] = base64.b64encode(out.getvalue()).decode()

def render(path):
    "Write the outputs of one notebook; one line that says how it went."
    from fastcore.nbio import nb2str, write_nb
    from nbdev.clean import clean_nb
    try: nb = execute(path)
    except Exception as e: return False, f'{path.name}: {type(e).__name__}: {e}; left as it was'
    missing = take_run(nb, path)
    clean_nb(nb, allowed_cell_metadata_keys=['tags'])
    size = lambda: len(nb2str(nb).encode())/1000
    for step in ((40,1000,70), (20,800,60), (10,640,50), (10,540,40)):
        if size() > limit_kb: light(nb, *step)
    kb = size()
    if kb > limit_kb: return False, f'{path.name}: {kb:.0f} kB, over {limit_kb}: draw its figures smaller; left as it was'
    write_nb(nb, path)
    return True, f'{path.name}: {kb:.0f} kB' + (f', {missing} cells have no run yet' if missing else '')

if __name__=='__main__':
    paths = [p for p in sorted((root/'nbs').glob('*.ipynb')) if not sys.argv[1:] or p.stem in sys.argv[1:]]
    with ProcessPoolExecutor(2, get_context('spawn'), max_tasks_per_child=1) as pool:
        results = []
        for ok, line in pool.map(render, paths): print(line, flush=True); results.append(ok)
    sys.exit(0 if results and all(results) else 1)
