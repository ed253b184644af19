"One folder of slides and reports as users have them, from the inventory to the pairs: each fault is one line that names it and the mend, and the good ones are done."
import shutil
import numpy as np, pytest, yaml
from conftest import ROOT
from pathgen.attributes import run_attributes
from pathgen.clip import build_clip, save_clip
from pathgen.core import read_table
from pathgen.describe import run_describe
from pathgen.embed import run_embed
from pathgen.pairs import run_pairs
from pathgen.phantom import paint_slides, slide_items
from pathgen.reports import run_reports
from pathgen.revise import run_revise
from pathgen.select import run_select
from pathgen.slides import run_slides
from pathgen.summarize import run_summarize
from pathgen.tile import run_tile
from pathgen.wsi import open_slide
from test_wsi import APERIO, write

P = {s: {k: v for k,v in p.items() if k not in ("model", "also")} for s,p in yaml.safe_load((ROOT/"params.yaml").read_text()).items()}
P |= {s: P[s] | dict(provider="builtin") for s in ("describe", "revise", "summarize")}
SAYS = "Sections show infiltrating glands with necrosis. Lymphocytes surround the tumour."

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "What the ten stages make of the folder."
    root = tmp_path_factory.mktemp("folder")
    paint_slides(slide_items(["colon"], 1, 1, 0, 2016, .25, 1), root/"painted", 1)
    good = next((root/"painted/slides").glob("*.svs"))
    with open_slide(good) as s: pixels = s.read(0, 0, 2016)
    slides, reports = root/"slides", root/"reports"
    slides.mkdir(); reports.mkdir()
    for n in ("Good-1", "Mute-1"): shutil.copy(good, slides/f"{n}.svs")
    (slides/"Notes-1.svs").write_text("ask Jo")
    (slides/"Cut-1.svs").write_bytes(good.read_bytes()[:5000])
    write(slides/"Glass-1.svs", np.full_like(pixels, 244))
    write(slides/"Scaleless-1.svs", pixels, "Aperio Image Library v12\r\n{w}x{h} (256x256) JPEG")
    write(slides/"Single-1.svs", pixels, APERIO, levels=(1,))
    for n,t in {"Good-1": SAYS, "Single-1": SAYS, "Scaleless-1": "", "Nobody-9": SAYS}.items(): (reports/f"{n}.txt").write_text(t)
    save_clip(build_clip("tiny", device="cpu"), root/"clip")
    data, how = str(root/"data"), dict(workers=1, max_failed=.9)
    _, notes = run_slides(data, **P["slides"] | dict(source="folder", folder=str(slides), reports=str(reports)), **how)
    run_reports(data, **P["reports"], **how)
    run_attributes(data, **P["attributes"] | dict(table=str(ROOT/"data/attributes_tcga.csv")), max_failed=0)
    run_tile(data, **P["tile"] | dict(tile_px=336), **how)
    run_embed(data, "cpu", model=str(root/"clip"), also=[], **P["embed"], **how)
    run_select(data, 0, "cpu", model=str(root/"clip"), **P["select"] | dict(n_cluster=2, top_attribute=1, top_report=1, threshold=.999), **how)
    run_describe(data, 0, **P["describe"], **how)
    run_revise(data, 0, **P["revise"] | dict(trials_per_slide=1), **how)
    run_summarize(data=data, **P["summarize"], **how)
    run_pairs(data=data, **P["pairs"] | dict(gallery_jpeg=None), **how)
    return root/"data", notes

def told(data, folder, item): return dict(read_table(data/folder/"errors.parquet")[["item", "error"]].values)[item]

@pytest.mark.parametrize("name, words", {"Notes-1": "not a slide", "Cut-1": "OpenSlide cannot read", "Scaleless-1": "slides.mpp_override", "Mute-1": "slides.reports", "Nobody-9": "fits no slide"}.items())
def test_the_inventory_says_one_line_of_each(done, name, words):
    notes = done[1][done[1]["item"]==name]
    assert len(notes) and notes.note.str.contains(words, regex=False).any() and not notes.note.str.contains("\n").any(), notes.to_string()

def test_an_empty_report_is_named_where_slides_and_reports_are_listed(done):
    data, notes = done
    assert notes["item"][notes.what=="report empty"].tolist()==["Scaleless-1"] and "is empty: put its text there" in told(data, "reports", "Scaleless-1")

def test_a_slide_without_tissue_is_named(done): assert "no patch holds enough tissue" in told(done[0], "tiles", "Glass-1")

def test_a_slide_without_a_scale_gets_patches_and_no_text(done):
    data, _ = done
    assert "slides.mpp_override" in told(data, "text/descriptions", "Scaleless-1") and "describe.mpp_if_missing" in told(data, "text/descriptions", "Scaleless-1")
    left = read_table(data/"pairs/left_out.parquet")
    assert set(left.slide_id)=={"Scaleless-1"} and left.reason.str.contains("data/text").all()

def test_the_good_ones_are_done(done):
    data, _ = done
    pairs, patches = read_table(data/"pairs/index.parquet"), read_table(data/"patches.parquet")
    assert set(pairs.slide_id)=={"Good-1", "Mute-1", "Single-1"} and pairs.caption.str.len().min() > 20
    by = patches.groupby("slide_id").origins.agg(lambda o: ",".join(o))
    assert "report" in by["Good-1"] and "report" in by["Single-1"] and "report" not in by["Mute-1"] and "cluster" in by["Mute-1"]
