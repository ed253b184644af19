"Sphinx site: prose and code from `nbs/`, outputs from the executed copies in `data/runs/`."
import re, shutil, sys
from pathlib import Path
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parent.parent)]
from fastcore.nbio import read_nb, write_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor, Processor
from nbdev.processors import (populate_language, add_show_docs, exec_show_docs, hide_, hide_line,
                              rm_header_dash, add_links, strip_ansi)
from notebooks import directives, done_cells

root = Path(__file__).resolve().parent.parent

def with_outputs(nb, runs):
    """Notebook `nb`, its `#| run` cells with the outputs of its executed copy, matched by cell id and source, and the parameters it
    ran with. A run passes over the examples, so these keep the outputs they have."""
    n, done = read_nb(nb), done_cells(nb, runs)
    for c in n.cells:
        if 'run' in directives(c) and (d := done.get(c.id)) and d.source==c.source: c.outputs = d.outputs
    if 'params' in done:
        i = next(i for i,c in enumerate(n.cells) if 'parameters' in c.metadata.get('tags', []))
        n.cells.insert(i+1, done['params'])
    return n

def drop_noise(cell):
    "Leave out what only a terminal shows: progress bars and warnings on stderr."
    if cell.cell_type=='code': cell.outputs = [o for o in cell.outputs if o.get('name')!='stderr']

def drop_pictures(out):
    "A shown Markdown file, such as the data card, loses pictures that lie beside it in data/."
    md = out.get('data', {}).get('text/markdown')
    if md: out['data']['text/markdown'] = re.sub(r'!\[[^]]*\]\((?!https?:|data:)[^)]*\)', '', ''.join(md))

class show_docs(exec_show_docs):
    "Run the `show_doc` cells on the exported module; no cell of the notebook runs."
    def begin(self):
        super().begin()
        for m in (c.directives_.get('default_exp') for c in self.nb.cells if hasattr(c, 'directives_')):
            if m: self.k.run_cell(f'import pathgen.{m} as m; globals().update(vars(m))')
    def __call__(self, cell):
        if getattr(cell, 'has_sd', False): super().__call__(cell)

class to_myst(Processor):
    "Fold exported source, turn `show_doc` output into prose, link pages to each other."
    def cell(self, c):
        tags = c.metadata.setdefault('tags', [])
        dirs = c.directives_ if c.cell_type=='code' and hasattr(c,'directives_') else {}
        if getattr(c, 'has_sd', False):
            md = next(''.join(o['data']['text/markdown']) for o in c.outputs if 'data' in o)
            md = re.sub(r'\{target=[^}]*\}', '', md.removeprefix('---')).strip()
            c.cell_type,c.source = 'markdown',re.sub(r'^\[source\]\(.*?\)\s*', '', md)
            for k in ('outputs', 'execution_count', 'has_sd'): c.pop(k, None)
        elif 'default_exp' in dirs: c.source = None
        elif dirs.keys() & {'export','exporti','exports'}: tags.append('hide-input')
        elif 'echo' in dirs: tags.append('remove-input')
        c.metadata.pop('execution', None)
        if c.cell_type=='markdown':
            c.source = re.sub(r'\[(`_\w+`)\]\([^)]*\)', r'\1', c.source) # private names have no entry to link to
            c.source = re.sub(re.escape(get_config().doc_url)+r'(\w+)\.html', r'\1.ipynb', c.source)
        for o in c.get('outputs', []): drop_pictures(o)

procs = [populate_language, add_show_docs, strip_ansi, hide_line, rm_header_dash, show_docs, hide_,
         add_links, drop_noise, to_myst]

def write_pages():
    "The pages of the site beside this file: `20_tile.ipynb` becomes `tile.ipynb`."
    for old in Path(__file__).parent.glob('*.ipynb'): old.unlink()
    for p in sorted((root/'nbs').glob('*.ipynb')):
        proc = NBProcessor(nb=with_outputs(p, root/'data/runs'), procs=procs)
        proc.process()
        write_nb(proc.nb, Path(__file__).parent/re.sub(r'^\d+[a-z]?_', '', p.name))
    shutil.copytree(root/'nbs/images', 'images', dirs_exist_ok=True)

def visit_math(block):
    "Formulas become MathML while the site is built: a browser shows them without a script or a network."
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert
    def visit(self, node):
        mathml = convert(node.astext(), display='block' if block else 'inline')
        self.body.append(f'<div class="math">{mathml}</div>' if block else mathml)
        raise SkipNode
    return visit

def setup(app):
    app.add_html_math_renderer('mathml', (visit_math(False), None), (visit_math(True), None))

write_pages()
project,author,html_title = 'pathgen','The pathgen authors','pathgen'
copyright = author
extensions = ['myst_nb', 'sphinx_copybutton']
html_math_renderer = 'mathml'
nb_execution_mode = 'off'
nb_code_prompt_show,nb_code_prompt_hide = 'Source','Source'
myst_heading_anchors,myst_enable_extensions = 3,['colon_fence', 'dollarmath', 'html_image']
suppress_warnings = ['myst.header']
html_theme,root_doc = 'furo','contents'
html_static_path,html_css_files = ['_static'],['custom.css']
html_show_sourcelink = html_copy_source = False
exclude_patterns = ['_build', 'jupyter_execute']
