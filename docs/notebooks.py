"What the README, the site and `make render` share: notebooks and the outputs of their runs."
from pathlib import Path
from fastcore.nbio import read_nb

def runs_of(nb, runs):
    "Executed copies of notebook `nb` under `runs`: its own name first, then those of stages that share it by number."
    nb, runs = Path(nb), Path(runs)
    number = nb.stem.partition('_')[0]
    found = sorted(runs.glob(f'{number}_*.ipynb')) if number.isdigit() else []
    return sorted((p for p in found if '.failed' not in p.suffixes), key=lambda p: p.name!=nb.name)

def done_cells(nb, runs):
    "Cells of the first executed copy of `nb` by id, {} when it was never run."
    for p in runs_of(nb, runs): return {c.id: c for c in read_nb(p).cells}
    return {}

def directives(cell):
    "Names of the `#|` directives of a code cell."
    if cell.cell_type != 'code': return set()
    lines = [l.strip()[2:].strip() for l in cell.source.splitlines() if l.strip().startswith('#|')]
    return {l.split(':')[0].split()[0] for l in lines if l}
