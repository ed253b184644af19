"""Lexicon, negation, truth and score of `pathgen.findings`."""
import json
from collections import Counter
from pathlib import Path
import numpy as np, pandas as pd, pytest
from pathgen.core import PathgenError
from pathgen.findings import (CONCEPTS, TISSUE_SOURCES, Truth, claims, denied_spans, parse, precision_recall, score,
                              tissue_source)

CAPTIONS = Path(__file__).parents[2]/"shared/data/captions/PathGen-1.6M_sample.json"
SLIDES = Path(__file__).parents[2]/"shared/data/meta/tcga_slides.tsv"

SAYS = [
    ("No necrosis, tumour cells are pleomorphic.", dict(necrosis=False, pleomorphism=True)),
    ("Mitoses are not seen, and nuclei are enlarged.", dict(mitoses=False, enlarged_nuclei=True)),
    ("There is no inflammation or necrosis, which suggests a benign lesion.", dict(inflammation=False, necrosis=False, benign=True)),
    ("Lacking normal colonic glands, hyperchromatic nuclei are seen.", dict(normal_glands=False, hyperchromasia=True)),
    ("Margins free of carcinoma. Invasive carcinoma.", dict(malignancy=True, margin_involved=False)),
    ("Invasive carcinoma. Margins free of carcinoma.", dict(malignancy=True, margin_involved=False)),
    ("Vascular Invasion: Not Identified. Perineural Invasion: Identified.", dict(vascular_invasion=False, perineural_invasion=True)),
    ("High grade prostatic intraepithelial neoplasia: identified.", dict(in_situ=True)),
    ("No pleomorphism, mitotic activity, or invasion is observed, indicating no signs of malignancy.",
     dict(pleomorphism=False, mitoses=False, malignancy=False)),
    ("Tumor is confined to the prostate.", dict(extension_beyond_organ=False)),
    ("Seminal vesicles: not involved.", dict(seminal_vesicle_invasion=False)),
    ("Both seminal vesicles are free of tumour.", dict(seminal_vesicle_invasion=False)),
    ("Five lymph nodes negative for metastatic carcinoma (0/5).", dict(nodal_metastasis=False)),
    ("One of 8 lymph nodes is positive for metastatic adenocarcinoma.", dict(nodal_metastasis=True, malignancy=True)),
    ("Lymphovascular invasion is absent, perineural invasion is present.", dict(vascular_invasion=False, perineural_invasion=True)),
    ("No mitoses are seen and the stroma is desmoplastic.", dict(mitoses=False, desmoplasia=True)),
    ("The glands are fused and cribriform, without necrosis, with prominent nucleoli.",
     dict(cribriform=True, necrosis=False, prominent_nucleoli=True)),
    ("Necrosis cannot be excluded.", dict(necrosis=True)),
    ("Nucleoli are inconspicuous.", dict(prominent_nucleoli=False)),
    ("Ductal carcinoma in situ.", dict(in_situ=True)),
    ("Haemorrhage and oedema in a fibre-rich stroma.", dict(hemorrhage=True, edema=True)),
    ("Hemorrhage and edema.", dict(hemorrhage=True, edema=True)),
    ("Gleason score 3+4=7, no Gleason pattern 5.", dict(gleason=True)),
    ("Lymphatic (small vessel) invasion: not seen.", dict(vascular_invasion=False)),
    ("Non-neoplastic tissue.", dict(benign=True)),
]

@pytest.mark.parametrize("text,want", SAYS, ids=[t for t,_ in SAYS])
def test_claims(text, want):
    got = claims(text)
    assert {k:got.get(k) for k in want} == want

def test_in_situ_is_not_invasive():
    assert "malignancy" not in claims("Ductal carcinoma in situ.")
    assert "malignancy" not in claims("High-grade prostatic intraepithelial neoplasia.")

def test_spans_point_at_the_words():
    text = "Tumour cells with enlarged, hyperchromatic nuclei; no necrosis."
    for f in parse(text): assert text[f.start:f.end] == f.text
    assert any("necrosis" in text[a:b] for a,b in denied_spans(text))

@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_phrase_reads_back(concept):
    for p in CONCEPTS[concept].phrases:
        assert claims(f"The section shows {p}.").get(concept) is True, p
        if concept not in ("gleason", "grade"): assert claims(f"There is no {p}.").get(concept) is False, p

def test_phrases_do_not_leak():
    implied = {"malignancy"}
    core = [k for k,c in CONCEPTS.items() if c.group in ("architecture", "stroma", "cells", "nuclei")]
    for k in core:
        for p in CONCEPTS[k].phrases:
            assert set(claims(f"There is {p}.")) - {k} - implied <= {"inflammation", "lymphocytes", "preserved_architecture"}, p

NONE = dict(normal_glands=False, cribriform=False, in_situ=False, necrosis=False, mucin=False, lymphocytes=False)

@pytest.fixture
def truth(tmp_path):
    """Normal glands on the left, cribriform nests with two lumina and an in situ lesion on stroma, then necrosis; a patch has 16 x 16 pixels."""
    from PIL import Image
    mask = np.zeros((64, 64), np.uint8); mask[:, 8:24] = 1; mask[:, 24:40] = 2; mask[:, 40:56] = 3; mask[:8, 56:] = 4
    part = np.where(mask > 0, 2, 0).astype(np.uint8)
    part[:, 24:40] = 1; part[4:14, 26:38] = 2; part[6:8, 28:30] = part[10:12, 34:36] = 3 # a nest with two lumina
    part[24:44, 26:38] = 2; part[30:32, 30:32] = 3                                       # a nest with one
    part[:, 40:56] = 1; part[20:60, 42:54] = 2
    cells = np.zeros_like(part); cells[48:, 24:40:4] = 1
    art = np.zeros_like(mask); art[:4] = 1
    parts = lambda **k: dict(ground=NONE, epithelium=NONE|k, lumen=NONE|k)
    regions = [dict(id=1, region_class="normal_glands", parts=parts(normal_glands=True)),
               dict(id=2, region_class="carcinoma_moderate", parts=parts(cribriform=True)),
               dict(id=3, region_class="in_situ", parts=parts(in_situ=True)),
               dict(id=4, region_class="necrosis", parts=dict(epithelium=dict(necrosis=True)))]
    info = dict(slide_id="S", source="colon", mpp=.25, downsample=32, regions=regions, mitoses=[[900, 100], [950, 90], [300, 90]],
                report=dict(findings=dict(necrosis=True), regions=[2], measurements=0))
    (tmp_path/"S.json").write_text(json.dumps(info))
    for n,z in {"":mask, ".artefacts":art, ".painted":np.stack([mask, part, cells], -1)}.items(): Image.fromarray(z).save(tmp_path/f"S{n}.png")
    return Truth.load(tmp_path, "S")

def test_a_patch_shows_what_was_painted_in_it(truth):
    assert truth.patch(256, 512, 512) == NONE | dict(normal_glands=True, mitoses=False)
    assert truth.patch(768, 1536, 480) == NONE | dict(lymphocytes=True, mitoses=False) # stroma of the carcinoma shows no nest
    edge = truth.patch(0, 512, 256+26)                                                # 9% of it is glands: nobody can be blamed
    assert "normal_glands" not in edge and edge["necrosis"] is False
    assert truth.patch(30000, 30000, 512) == NONE | dict(mitoses=False)

def test_a_truth_whose_picture_is_cut_off_names_it(truth, tmp_path):
    p = tmp_path/"S.artefacts.png"
    p.write_bytes(p.read_bytes()[:60])
    with pytest.raises(PathgenError, match=r"S\.artefacts\.png cannot be read \(.*\): delete it and run `pathgen run phantom`"): Truth.load(tmp_path, "S")

def test_a_pattern_needs_its_mark_in_view(truth):
    assert truth.patch(768, 0, 512)["cribriform"] is True         # two lumina
    assert "cribriform" not in truth.patch(768, 768, 512)         # one: it might be anything
    assert truth.patch(768, 1472, 512)["cribriform"] is False     # no nest at all
    assert truth.patch(1280, 512, 512)["in_situ"] is True         # with its border
    assert "in_situ" not in truth.patch(1376, 800, 288)           # from its middle

def test_open_areas_are_neither_true_nor_false(truth):
    corner = truth.patch(56*32, 0, 256)
    assert corner == dict(necrosis=True, mitoses=False) # this region keeps silent on all the rest

def test_mitoses_are_counted(truth):
    assert truth.patch(768, 0, 512)["mitoses"] is True
    assert "mitoses" not in truth.patch(256, 0, 512)
    assert truth.patch(256, 512, 512)["mitoses"] is False

def test_truth_of_areas(truth):
    assert truth.classes(1280, 512, 512) == pytest.approx(dict(in_situ=1))
    assert sum(truth.classes(0, 512, 512).values()) == pytest.approx(.5)
    assert truth.region_fraction(512, 512, 512, truth.report["regions"]) == pytest.approx(.5)
    assert truth.tissue(clean=False).sum() - truth.tissue().sum() == 4*56

def test_truth_missing(tmp_path):
    with pytest.raises(PathgenError, match="nothing.json.*pathgen run phantom"): Truth.load(tmp_path, "nothing")

def test_an_old_truth_says_what_is_missing(truth, tmp_path):
    (tmp_path/"S.painted.png").unlink()
    with pytest.raises(PathgenError, match="S.painted.png.*pathgen run phantom"): Truth.load(tmp_path, "S")

def test_score_counts():
    n = score([dict(a=True, b=False, c=True), dict()], [dict(a=True, b=True, c=False), dict(a=True, d=False)])
    assert n.loc["a"].tolist() == [1, 0, 1, 0] and n.loc["b"].tolist() == [0, 1, 1, 0]
    assert n.loc["c"].tolist() == [0, 1, 0, 0] and n.loc["d"].tolist() == [0, 0, 0, 0]
    pr = precision_recall(n)
    assert pr.loc["all", "precision"] == pytest.approx(1/3) and pr.loc["all", "recall"] == pytest.approx(1/3)
    assert np.isnan(pr.loc["d", "precision"])
    with pytest.raises(ValueError): score([{}], [{}, {}])

@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs ../shared/data/captions, which this checkout lacks")
def test_real_captions():
    texts = [r["caption"] for r in json.loads(CAPTIONS.read_text())][::5]
    found = [claims(t) for t in texts]
    n = np.array([len(c) for c in found])
    assert 6 < n.mean() < 9, "experts counted 5.3 findings a caption, ours adds the diagnosis"
    assert (n == 0).mean() < .01 and (n >= 3).mean() > .93
    said = Counter(c for f in found for c,v in f.items() if v)
    denied = Counter(c for f in found for c,v in f.items() if not v)
    assert {c for c,_ in said.most_common(12)} >= {"hyperchromasia", "pleomorphism", "fibrous_stroma", "malignancy"}
    assert denied["mitoses"] > 30 and denied["eosinophilic_cytoplasm"] == 0

@pytest.mark.skipif(not SLIDES.exists(), reason="needs ../shared/data/meta, which this checkout lacks")
def test_every_released_project_has_an_organ():
    projects = pd.read_csv(SLIDES, sep="\t").project.unique()
    assert len(projects) == 31 and "unknown" not in {tissue_source(p) for p in projects}
    assert tissue_source("TCGA-LAML") == "unknown" and len(TISSUE_SOURCES) == 32
