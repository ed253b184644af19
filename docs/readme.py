"README.md from nbs/index.ipynb: `python docs/readme.py [ROOT]`."
import re, sys
from pathlib import Path
import nbformat
from fastcore.nbio import nb2str
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import populate_language, hide_, hide_line, add_links

def drop_echo(cell):
    "Leave out the source of cells marked `#| echo: false`."
    if cell.cell_type=='code' and 'echo' in getattr(cell, 'directives_', {}): cell.metadata['drop'] = True

def readme(root='.'):
    "The text of README.md."
    proc = NBProcessor(Path(root)/'nbs/index.ipynb', [populate_language, hide_, hide_line, add_links, drop_echo])
    proc.process()
    nb = nbformat.reads(nb2str(proc.nb), 4)
    for c in nb.cells:
        if c.metadata.pop('drop', False): c.source = ''
    text,_ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r'```(python)?\s*```\n', '', text).replace('](images/', '](nbs/images/')
    return re.sub(r'\n{3,}', '\n\n', text).strip()+'\n'

if __name__=='__main__':
    root = Path(*sys.argv[1:2])
    (root/'README.md').write_text(readme(root))
