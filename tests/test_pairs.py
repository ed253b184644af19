"Pairs: readers of others, bytes, splits, released form, faults."
import io, json, tarfile
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen.core import PathgenError, read_json, read_table, write_table
from pathgen.pairs import as_jpeg, card, file_ids, gallery, image_fault, run_pairs, words_of

def make(root, slides=8, patches=4):
    "Tables and JPEGs as the stages before leave them."
    ids = [f"TCGA-AA-{i:04d}-01Z-00-DX1.{i:08X}-AB" for i in range(slides)]
    organ = [("colon","breast","lung")[i%3] for i in range(slides)]
    write_table(pd.DataFrame(dict(slide_id=ids, patient_id=[i[:12] for i in ids], source=organ, project="TCGA-X")), root/"slides.parquet")
    rows = [dict(patch_id=f"{s}_{672*k}_0", slide_id=s, x=672*k, y=0, px=672, mpp=.25 if i else float("nan"), origins="report", kept=True)
            for i,s in enumerate(ids) for k in range(patches)]
    rows.append(dict(rows[0], patch_id=f"{ids[0]}_9_9", x=9, y=9, kept=False))
    write_table(pd.DataFrame(rows), root/"patches.parquet")
    for n,r in enumerate(rows[:-1]):
        f = root/"patches"/r["slide_id"]/f"{r['patch_id']}.jpg"
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((96,96,3), 40+4*n, np.uint8)).save(f)
    texts = [f"The {organ[n//patches]} tissue shows fibrous stroma with {n} lymphocytes." for n in range(len(rows)-1)]
    write_table(pd.DataFrame(dict(patch_id=[r["patch_id"] for r in rows[:-1]], slide_id=[r["slide_id"] for r in rows[:-1]], text=texts,
                                  provider="builtin", n_tokens=15)), root/"text"/"captions.parquet")
    return root

def run(root, **kw):
    return run_pairs(**{**dict(val_share=.25, test_share=.25, pairs_per_shard=5, file_id_table=None, gallery_jpeg=None, data=root), **kw})

def files(root): return {p.name:p.read_bytes() for p in sorted((root/"pairs").iterdir()) if p.is_file()}

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = make(tmp_path_factory.mktemp("pairs"))
    return root, run(root)

def test_open_clip_reads_the_shards(done):
    from open_clip_train.data import get_wds_dataset
    root, df = done
    train = df[df.split=="train"]
    args = SimpleNamespace(train_data=str(root/"pairs"/f"train-{{000000..{train.shard.max()[-6:]}}}.tar"), train_num_samples=None, val_data=None,
                           val_num_samples=None, dataset_resampled=False, train_data_upsampling_factors=None, seed=0, batch_size=4,
                           workers=1, world_size=1, distributed=False, rank=0)
    pixel = lambda im: np.asarray(im.convert("RGB"), np.float32)[0,0,0]
    data = get_wds_dataset(args, pixel, is_train=False, tokenizer=lambda t: [t]) if args.val_data else None
    args.val_data, args.val_num_samples = args.train_data, len(train)
    data = get_wds_dataset(args, pixel, is_train=False, tokenizer=lambda t: [t])
    got = [t for _,texts in data.dataloader for t in texts]
    assert sorted(got)==sorted(train.caption)
    from open_clip_train.data import get_dataset_size
    assert get_dataset_size(args.train_data)==(len(train), train.shard.nunique())

def test_image_and_text_belong_together(done):
    import webdataset as wds
    root, df = done
    urls = [str(root/"pairs"/f"{s}.tar") for s in df.shard.drop_duplicates()]
    seen = {}
    for s in wds.WebDataset(urls, shardshuffle=False).decode("pil"):
        assert int(s["txt"].split()[-2])==round((np.asarray(s["jpg"])[0,0,0]*255 if s["jpg"].mode=="F" else np.asarray(s["jpg"])[0,0,0])-40)//4
        seen[s["json"]["patch_id"]] = s["json"]
    assert set(seen)==set(df.patch_id) and len(seen)==32
    first = df[df.mpp.isna()].patch_id.iloc[0]
    assert seen[first]["mpp"] is None

def test_same_run_same_bytes_and_no_owner(done):
    root, _ = done
    before = files(root)
    for t in (root/"pairs").glob("*.tar"): t.unlink()
    run(root)
    assert files(root)==before
    for name in [n for n in before if n.endswith(".tar")]:
        for m in tarfile.open(fileobj=io.BytesIO(before[name])): assert (m.mtime, m.uid, m.uname)==(0, 0, "") and m.name.count(".")==1

def test_no_patient_in_two_splits_and_seed_matters(done, tmp_path):
    root, df = done
    assert df.groupby("patient_id").split.nunique().max()==1
    assert df.groupby("split").patient_id.nunique().to_dict()==dict(train=4, val=2, test=2)
    other = run(make(tmp_path), seed=1)
    assert set(other.patch_id)==set(df.patch_id) and list(other.patch_id)!=list(df.patch_id)

def test_fewer_shards_leave_none_behind(tmp_path):
    run(make(tmp_path), pairs_per_shard=2)
    run(tmp_path, pairs_per_shard=100)
    assert sorted(p.name for p in (tmp_path/"pairs").glob("*.tar"))==["test-000000.tar", "train-000000.tar", "val-000000.tar"]
    assert set(read_json(tmp_path/"pairs"/"sizes.json"))=={"test-000000.tar", "train-000000.tar", "val-000000.tar"}

def test_released_form_is_that_of_the_release(done, real):
    ours, theirs = read_json(done[0]/"pairs"/"pathgen.json"), json.loads((real/"captions"/"PathGen-1.6M_sample.json").read_text())
    assert set(theirs[0]) <= set(ours[0])
    for k in theirs[0]: assert type(ours[0][k]) is type(theirs[0][k])
    assert [type(v) for v in ours[0]["position"]]==[type(v) for v in theirs[0]["position"]]

def test_file_ids_of_the_released_rows(real):
    ids = file_ids(real/"meta"/"tcga_slides.tsv")
    rows = json.loads((real/"captions"/"PathGen-1.6M_sample.json").read_text())
    assert all(r["wsi_id"] in ids for r in rows)

def test_llava_form(done):
    root, df = done
    rows = read_json(root/"pairs"/"llava-train.json")
    assert {r["id"] for r in rows}==set(df[df.split=="train"].patch_id)
    assert all((root/"patches"/r["image"]).exists() for r in rows)
    assert rows[0]["conversations"][0]["value"].startswith("<image>\n") and rows[0]["conversations"][1]["from"]=="gpt"

def test_faults_are_counted_named_and_not_fatal(tmp_path):
    make(tmp_path)
    jpegs = sorted(tmp_path.glob("patches/*/*.jpg"))
    jpegs[0].unlink()
    jpegs[1].write_bytes(jpegs[1].read_bytes()[:200])
    jpegs[2].write_text("no image")
    captions = read_table(tmp_path/"text"/"captions.parquet")
    write_table(captions.iloc[:-1], tmp_path/"text"/"captions.parquet")
    with pytest.raises(PathgenError, match="4 of 32 patches have no pair, such as TCGA-AA-0000"): run(tmp_path)
    df = run(tmp_path, max_failed=.2)
    left = read_table(tmp_path/"pairs"/"left_out.parquet")
    assert len(df)==28 and sorted(left.reason.str.split(":").str[0])==["broken image", "broken image", "no caption", "no image"]
    text = (tmp_path/"pairs"/"README.md").read_text()
    assert "| broken image | 2 |" in text
    assert read_json(tmp_path/"metrics"/"pairs.json")["left_out"]==4

def test_missing_tables_name_their_stage(tmp_path):
    make(tmp_path)
    (tmp_path/"text"/"captions.parquet").unlink()
    with pytest.raises(PathgenError, match="run `pathgen run summarize` first"): run(tmp_path)

def test_card_says_what_is_synthetic(done):
    _, df = done
    none = pd.DataFrame(dict(patch_id=[], slide_id=[], reason=pd.Series([], dtype=object)))
    assert "**Real slides.**" in card(df, none, "")
    phantom = df.assign(slide_id="PHTM-CO-0001-01Z-00-DX1")
    assert "**Synthetic.**" in card(phantom, none, "")
    assert "**Mixed.** 1 of 9" in card(pd.concat([df, phantom.iloc[:1]]), none, "")

def test_gallery_is_small_and_repeatable(done, tmp_path):
    root, df = done
    run(root, gallery_jpeg=tmp_path/"g.jpg")
    jpeg = (tmp_path/"g.jpg").read_bytes()
    assert len(jpeg)<300_000 and Image.open(io.BytesIO(jpeg)).width>800
    assert as_jpeg(gallery(df, root))==jpeg

def test_image_fault(tmp_path):
    assert image_fault(tmp_path/"x.jpg").startswith("no image")

def test_words_count_captions_not_repeats():
    assert words_of(["Glands, glands and stroma", "The stroma"])==dict(stroma=2, glands=1)
