"""The table of attributes and the stage that reads it."""
import shutil
from pathlib import Path
import pandas as pd, pytest
from pathgen.attributes import N, Attributes, list_for, read_lists, run_attributes
from pathgen.core import PathgenError, read_json
from pathgen.findings import TISSUE_SOURCES, parse, tissue_source

TABLE = Path(__file__).parents[1]/"data/attributes_tcga.csv"

def test_table_is_complete():
    lists = read_lists(TABLE)
    assert {p[5:] for p,_ in lists if p} == set(TISSUE_SOURCES)
    for (p,s),a in lists.items():
        Attributes(attributes=a)
        assert s == (tissue_source(p) if p else "unknown")
        assert sum(bool(parse(x)) for x in a) >= 8, p
        assert not [x for x in a if x != x.strip() or x.endswith(".") or x.lower().startswith(("no ", "absence"))], p

def test_lists_of_one_organ_differ():
    lists = {p:set(a) for (p,_),a in read_lists(TABLE).items()}
    assert len(lists["TCGA-KIRC"] & lists["TCGA-KICH"]) < N/2 and len(lists["TCGA-LUAD"] & lists["TCGA-LUSC"]) < N/2

@pytest.mark.parametrize("source,project,want", [("breast", "TCGA_BRCA", "TCGA-BRCA"), ("x", "LUSC", "TCGA-LUSC"), ("kidney", None, "TCGA-KIRC"),
    ("prostate", "", "TCGA-PRAD"), ("uterus", "PHTM", "TCGA-UCEC"), ("spleen", "", ""), ("unknown", "", "")])
def test_the_right_list(source, project, want): assert list_for(source, project, TABLE)[0] == want

@pytest.fixture
def root(tmp_path):
    pd.DataFrame([dict(source="kidney", project="TCGA-KIRC", status="ok"), dict(source="kidney", project="TCGA-KIRP", status="ok"),
                  dict(source="kidney", project="TCGA-KIRC", status="ok"), dict(source="spleen", project=None, status="ok")]
                 ).to_parquet(tmp_path/"slides.parquet")
    return tmp_path

RUN = dict(provider="builtin", table=TABLE, retries=2, max_failed=.1)

def test_run(root):
    df = run_attributes(root, **RUN)
    assert df.groupby(["source", "project"]).size().to_dict() == {("kidney", "TCGA-KIRC"):20, ("kidney", "TCGA-KIRP"):20, ("spleen", ""):20}
    assert {"source", "attribute", "provider"} <= set(df) and set(df.provider) == {"builtin"}
    assert read_json(root/"metrics/attributes.json") == dict(sources=3, attributes=60, general=1)
    before = (root/"attributes.parquet").read_bytes()
    run_attributes(root, **RUN)
    assert (root/"attributes.parquet").read_bytes() == before

def test_a_changed_table_changes_the_run(root, tmp_path):
    run_attributes(root, **RUN)
    own = shutil.copy(TABLE, tmp_path/"own.csv")
    own.write_text(own.read_text().replace("unknown,necrosis", "unknown,x").replace("unknown,tumor necrosis", "unknown,coagulative necrosis"))
    df = run_attributes(root, **RUN | dict(table=own))
    assert "coagulative necrosis" in df[df.source == "spleen"].attribute.tolist()

@pytest.mark.parametrize("change,why", [(dict(provider="gpt"), "unknown provider"), (dict(table="nowhere.csv"), "nowhere.csv is missing")])
def test_bad_parameters(root, change, why):
    with pytest.raises(PathgenError, match=why): run_attributes(root, **RUN | change)

def test_bad_table(tmp_path):
    (tmp_path/"t.csv").write_text("organ,what\nliver,bile\n")
    with pytest.raises(PathgenError, match="columns must be project, source, attribute"): read_lists(tmp_path/"t.csv")
