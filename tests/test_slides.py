"The inventory: every kind of bad slide has its line, every report its place, and the rest goes on."
import hashlib, shutil
import numpy as np, pandas as pd, pytest, tifffile
from pathgen.core import PathgenError, read_json, read_table
from pathgen.slides import run_slides, walk
from test_wsi import painted, write

NONE = dict(folder=None, reports=None, inventory=None, manifest=None, file_map=None, mpp_override=None, verify="md5",
            workers=1, max_failed=.1)

def run(data, source="folder", **kw): return run_slides(str(data), source, **NONE | kw)

@pytest.fixture
def lab(tmp_path):
    "A folder as it is found: spaces, subfolders, a text file, a cut slide, one name twice, one without mpp."
    root = tmp_path/"my slides"
    (root/"batch 2").mkdir(parents=True)
    a = write(root/"TCGA-AA-0001-01Z-00-DX1.svs", painted(300))
    write(root/"batch 2"/"B 1.svs", painted(300), "Aperio Image Library v12\r\n{w}x{h} (256x256) JPEG")
    shutil.copy(a, root/"batch 2"/a.name)
    (root/"C.svs").write_text("these are notes")
    (root/"D.svs").write_bytes(a.read_bytes()[:2000])
    (root/"readme.txt").write_text("ask Jo")
    return root

def test_folder(tmp_path, lab):
    df, notes = run(tmp_path/"data", folder=str(lab))
    status = dict(zip(df.slide_id, df.status))
    assert status=={"TCGA-AA-0001-01Z-00-DX1":"ok", "TCGA-AA-0001-01Z-00-DX1~2":"duplicate", "B 1":"ok", "C":"unreadable", "D":"unreadable"}
    assert df.slide_id.is_unique and (df.error[df.status!="ok"]!="").all() and not df.error.str.contains("\n").any()
    m = read_json(tmp_path/"data/metrics/slides.json")
    assert m=={"patients":2, "slides":2, "unreadable":3, "without_mpp":1, "without_report":2}
    got = read_table(tmp_path/"data/slides.parquet")
    assert got.columns.tolist()=="slide_id path patient_id source project width height mpp mpp_from objective_power vendor quickhash report_id status error".split()
    assert set(notes.what)=={"unreadable", "duplicate", "no scale", "no report", "no patient"}

def test_a_loop_of_links_is_walked_once(tmp_path, lab):
    (lab/"batch 2"/"round").symlink_to(lab)
    files = walk(lab)
    assert len(files)==6 and len({f.resolve() for f in files})==6, files

def test_same_run_same_bytes(tmp_path, lab):
    for d in "ab": run(tmp_path/d, folder=str(lab))
    assert (tmp_path/"a/slides.parquet").read_bytes()==(tmp_path/"b/slides.parquet").read_bytes()

def test_only_changed_slides_are_opened_again(tmp_path, lab, monkeypatch):
    import pathgen.slides as m
    run(tmp_path/"data", folder=str(lab))
    opened, real = [], m.open_slide
    monkeypatch.setattr(m, "open_slide", lambda p, mpp=None: opened.append(p) or real(p, mpp))
    run(tmp_path/"data", folder=str(lab))
    assert opened==[]
    write(lab/"batch 2"/"B 1.svs", painted(400))
    df,_ = run(tmp_path/"data", folder=str(lab))
    assert [p[-7:] for p in opened]==["B 1.svs"] and df.height[df.slide_id=="B 1"].item()==400

def test_mpp_override(tmp_path, lab):
    (tmp_path/"mpp.csv").write_text("slide_id,mpp\nB 1,0.5\nZ,0.25\n")
    df, notes = run(tmp_path/"data", folder=str(lab), mpp_override=str(tmp_path/"mpp.csv"))
    b = df[df.slide_id=="B 1"].iloc[0]
    assert (b.mpp, b.mpp_from)==(.5, "override") and notes[notes.what=="scale unused"].item.tolist()==["Z"]
    for bad in ("40x", "-1", "250", ""):
        (tmp_path/"mpp.csv").write_text(f"slide_id,mpp\nB 1,{bad}\n")
        with pytest.raises(PathgenError, match="mpp.csv line 2"): run(tmp_path/"data", folder=str(lab), mpp_override=str(tmp_path/"mpp.csv"))

def test_reports(tmp_path, lab):
    r = tmp_path/"reports"
    r.mkdir()
    for n in ("TCGA-AA-0001.UUID.pdf.txt", "TCGA-AA-0001.VVID.pdf.txt", "TCGA-ZZ-9999.X.pdf.txt"): (r/n).write_text("Adenocarcinoma.")
    (r/"B 1.txt").write_text("")
    df, notes = run(tmp_path/"data", folder=str(lab), reports=str(r))
    by = dict(zip(df.slide_id, df.report_id))
    assert (by["TCGA-AA-0001-01Z-00-DX1"], by["B 1"])==("TCGA-AA-0001.UUID", "B 1")
    n = {k:set(g.item) for k,g in notes.groupby("what")}
    assert n["report unused"]=={"TCGA-AA-0001.VVID", "TCGA-ZZ-9999.X"} and n["report empty"]=={"B 1"} and "no report" not in n
    files = read_table(tmp_path/"data/report_files.parquet")
    assert files.columns.tolist()==["report_id","patient_id","path"] and len(files)==4

def test_reports_from_csv_stay_inside(tmp_path, lab):
    (tmp_path/"r.csv").write_text('report_id,slide_id,text\n../../evil,B 1,"No tumour, only\nfibrosis."\n')
    df,_ = run(tmp_path/"data", folder=str(lab), reports=str(tmp_path/"r.csv"))
    files = read_table(tmp_path/"data/report_files.parquet")
    path = files.path[0]
    assert dict(zip(df.slide_id, df.report_id))["B 1"]=="../../evil"
    assert (tmp_path/"data/report_files").resolve()==(tmp_path/path).resolve().parent
    assert open(path).read()=="No tumour, only\nfibrosis."

def test_inventory(tmp_path, lab):
    (tmp_path/"i.csv").write_text("slide_id,source,patient_id\nB 1,breast,p9\n")
    df,_ = run(tmp_path/"data", folder=str(lab), inventory=str(tmp_path/"i.csv"))
    b = df[df.slide_id=="B 1"].iloc[0]
    assert (b.source, b.patient_id)==("breast", "p9")

@pytest.fixture
def gdc(tmp_path):
    "A manifest of four files: nested, flat, cut in the download, and not there."
    root, rows = tmp_path/"gdc", ["id\tfilename\tmd5\tsize\tstate"]
    for k,(i,kind) in enumerate((("a1","nested"), ("b2","flat"), ("c3","cut"), ("d4","missing"))):
        name = f"TCGA-A{k}-000{k}-01Z-00-DX1.{i}.svs"
        p = root/i/name if kind!="flat" else root/name
        p.parent.mkdir(parents=True, exist_ok=True)
        data = write(p, painted(300, k)).read_bytes()
        rows.append(f"{i}\t{name}\t{hashlib.md5(data).hexdigest()}\t{len(data)}\tvalidated")
        if kind=="cut": p.write_bytes(data[:-100])
        if kind=="missing": p.unlink()
    (tmp_path/"manifest.txt").write_text("\n".join(rows)+"\n")
    (tmp_path/"map.tsv").write_text("project\tfile_id\tfile_name\nTCGA_BRCA\ta1\tx.svs\nTCGA-LUAD\tzz\tTCGA-A1-0001-01Z-00-DX1.b2.svs\n")
    return root

def test_tcga(tmp_path, gdc):
    df,_ = run(tmp_path/"data", "tcga", folder=str(gdc), manifest=str(tmp_path/"manifest.txt"), file_map=str(tmp_path/"map.tsv"))
    assert df.status.tolist()==["ok","ok","unreadable","missing"]
    assert df.source.tolist()[:2]==["breast","lung"] and df.project[0]=="TCGA-BRCA" and df.patient_id[0]=="TCGA-A0-0000"
    assert "the manifest says" in df.error[2] and "gdc-client download -m manifest.txt" in df.error[3]

def test_tcga_md5(tmp_path, gdc):
    p = gdc/"a1"/"TCGA-A0-0000-01Z-00-DX1.a1.svs"
    p.write_bytes(p.read_bytes().replace(b"Q=70", b"Q=71"))
    kw = dict(folder=str(gdc), manifest=str(tmp_path/"manifest.txt"))
    assert "md5" in run(tmp_path/"data", "tcga", **kw)[0].error[0]
    by_size = run(tmp_path/"data", "tcga", **kw, verify="size")[0]
    assert by_size.status.tolist()==["ok","ok","unreadable","missing"] and " bytes, the manifest says " in by_size.error[2] and "download it again" in by_size.error[2]

@pytest.mark.parametrize("kw,line", [
    (dict(source="boxes"), "phantom, folder or tcga"), (dict(folder="nowhere"), "nowhere"), (dict(), "slides.folder"),
    (dict(source="tcga", folder="x"), "slides.manifest"), (dict(source="tcga", manifest="no.txt", folder="x"), "no.txt"),
    (dict(source="phantom"), "pathgen run phantom"), (dict(folder=".", verify="sha"), "slides.verify")])
def test_wrong_parameters(tmp_path, monkeypatch, kw, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PathgenError, match=line) as e: run(tmp_path/"data", **kw)
    assert "\n" not in str(e.value)

def test_empty_folder_and_bad_tables(tmp_path, lab):
    (tmp_path/"none").mkdir()
    with pytest.raises(PathgenError, match="no slides below"): run(tmp_path/"data", folder=str(tmp_path/"none"))
    (tmp_path/"i.csv").write_bytes(b"\xff\xfe\x00bad")
    for kw in (dict(inventory=str(tmp_path/"i.csv")), dict(reports=str(tmp_path/"i.csv")), dict(reports=str(tmp_path/"absent"))):
        with pytest.raises(PathgenError) as e: run(tmp_path/"data", folder=str(lab), **kw)
        assert "\n" not in str(e.value)

def test_tables_that_excel_wrote_are_read(tmp_path, lab):
    (tmp_path/"mpp.csv").write_text("slide_id,mpp\nB 1,0.5\n", encoding="utf-8-sig")
    assert run(tmp_path/"data", folder=str(lab), mpp_override=str(tmp_path/"mpp.csv"))[0].mpp_from.tolist().count("override")==1

def test_hidden_files_are_no_slides(tmp_path, lab):
    "As those that macOS puts beside each file on a foreign disk."
    for n in ("._C.svs", ".trash/E.svs"):
        (lab/n).parent.mkdir(exist_ok=True)
        (lab/n).write_text("x")
    assert len(run(tmp_path/"data", folder=str(lab))[0])==5

def test_a_slide_of_which_the_header_alone_is_whole_is_unreadable(tmp_path, lab):
    with tifffile.TiffFile(write(lab/"E.svs", painted(300))) as t: at, n = t.pages[0].dataoffsets[0], t.pages[0].databytecounts[0]
    data = bytearray((lab/"E.svs").read_bytes())
    data[at:at+n] = bytes(n)
    (lab/"E.svs").write_bytes(data)
    e = run(tmp_path/"data", folder=str(lab))[0].set_index("slide_id").loc["E"]
    assert e.status=="unreadable" and "E.svs: tile in row 0, column 0 is damaged" in e.error

def test_a_slide_on_a_disk_that_fails_is_one_line(tmp_path, lab, monkeypatch):
    import pathgen.slides as m
    real = m.open_slide
    def opened(p, mpp=None):
        if p.endswith("B 1.svs"): raise OSError(5, "Input/output error")
        return real(p, mpp)
    monkeypatch.setattr(m, "open_slide", opened)
    df, _ = run(tmp_path/"data", folder=str(lab))
    assert df.status.tolist().count("ok")==1 and "Input/output error" in df.set_index("slide_id").error["B 1"]

def test_real(tmp_path, real):
    (tmp_path/"in").mkdir()
    for n in ("slides", "slides_bad"): (tmp_path/"in"/n).symlink_to(real/n)
    df, notes = run(tmp_path/"data", folder=str(tmp_path/"in"), file_map=str(real/"meta/tcga_slides.tsv"), reports=str(real/"reports/tcga_prad_denoised"))
    ok = df[df.status=="ok"]
    assert sorted(ok.slide_id)==["CMU-1-Small-Region", "TCGA-CR-7395-01A-01-TS1", "boxes", "small"]
    assert sorted(df.slide_id[df.status=="unreadable"])==["broken", "unopenable", "unreadable"]
    assert ok.source[ok.slide_id.str.startswith("TCGA")].item()=="head and neck"
    assert len(notes[notes.what=="report unused"])==21, "240 reports without a slide: 20 lines and a count"
