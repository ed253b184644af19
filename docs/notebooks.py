"What the README, the site and `make render` share: notebooks and the outputs of their runs."
from pathlib import Path
import yaml
from fastcore.nbio import read_nb

def runs_of(nb, runs):
    """Executed copies of notebook `nb`: its own in `runs`, then those of the stages that share it, `NN_name.STAGE.ipynb`, in the order of
    the pipeline, then the one of a run with a root of its own, `data/real/runs/34_real.ipynb`."""
    nb, runs = Path(nb), Path(runs)
    stages = yaml.safe_load((nb.parent.parent/'dvc.yaml').read_text())['stages']
    shared = [runs/f'{nb.stem}.{s}.ipynb' for s in stages]
    apart = runs.parent/nb.stem.partition('_')[2]/'runs'/nb.name
    return [p for p in (runs/nb.name, *shared, apart) if p.exists()]

def directives(cell):
    "Names of the `#|` directives of a code cell."
    if cell.cell_type != 'code': return set()
    lines = [l.strip()[2:].strip() for l in cell.source.splitlines() if l.strip().startswith('#|')]
    return {l.split(':')[0].split()[0] for l in lines if l}

def done_cells(nb, runs):
    "Cells of the first executed copy of `nb` by id, {} when it was never run; one with the directive `every` shows the outputs of all copies."
    copies = [{c.id: c for c in read_nb(p).cells} for p in runs_of(nb, runs)]
    first = copies[0] if copies else {}
    for i, c in first.items():
        if 'every' in directives(c): c.outputs = [o for d in copies if i in d and d[i].source==c.source for o in d[i].outputs]
    return first
