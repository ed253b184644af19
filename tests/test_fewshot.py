"Few shots: all probes at once give the plain loop's weights, the epoch is picked without the test images, towers are kept."
import numpy as np, pandas as pd, pytest, torch, yaml
from conftest import ROOT
from toy_sets import write_sets
from pathgen import fewshot
from pathgen.clip import build_clip, load_clip, save_clip
from pathgen.core import PathgenError, read_json, read_table
from pathgen.fewshot import *
from pathgen.sets import colour_histogram, read_images, read_set, write_features

def toy(n=60, classes=3, dim=32, signal=.5, seed=0, split="all", groups=0):
    "A table in the form of `read_features`, and unit vectors."
    g = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), n)
    x = signal*g.normal(size=(classes,dim))[y] + g.normal(size=(len(y),dim))
    df = pd.DataFrame(dict(label=[f"c{c}" for c in y], split=split, path=[f"{i}.png" for i in range(len(y))], item=-1,
        group=[f"g{c}-{i%groups}" if groups else "" for i,c in enumerate(y)]))
    df.attrs = dict(name="toy", title="Toy", standin=True, classes={f"c{c}":f"c{c}" for c in range(classes)})
    return df, (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

def published(df): # Train, val and test in turn
    df = df.assign(split=np.array(["train","train","val","test"])[np.arange(len(df))%4])
    return df

def some_runs(df, shots=(1,3,20), seeds=3, dim=32, **kw):
    y = codes(df)
    return y, [plan_run(y, k, s, dim, **kw) for k in shots for s in range(seeds)]

@pytest.mark.parametrize("classes,dim,signal,batch,epochs", [(2,64,0,32,20), (3,128,1,32,20), (8,256,.3,32,20), (4,32,2,7,5), (2,16,.5,1,3)])
def test_all_at_once_is_the_plain_loop(classes, dim, signal, batch, epochs):
    df,x = toy(50, classes, dim, signal)
    y,runs = some_runs(df, (1,2,9,33), 3, dim, batch=batch, epochs=epochs)
    fast = train_probes(x, y, [r[1] for r in runs], [r[2] for r in runs], epochs)
    slow = torch.stack([plain_probe(x, y, plan, first, epochs) for _,plan,first in runs])
    assert fast.shape == (12,epochs,classes,dim+1) and (fast-slow).abs().max() < 1e-5
    assert (fast[:,-1]-fast[:,0]).abs().max() > .01, "nothing was learned"

def test_other_rates_and_decay():
    df,x = toy()
    y,runs = some_runs(df)
    kw = dict(lr=.05, wd=.5)
    fast = train_probes(x, y, [r[1] for r in runs], [r[2] for r in runs], **kw)
    slow = torch.stack([plain_probe(x, y, plan, first, **kw) for _,plan,first in runs])
    assert (fast-slow).abs().max() < 5e-5 and (fast-train_probes(x, y, [r[1] for r in runs], [r[2] for r in runs])).abs().max() > .1

def test_a_run_does_not_depend_on_its_company():
    df,x = toy()
    y,runs = some_runs(df)
    together = train_probes(x, y, [r[1] for r in runs], [r[2] for r in runs])
    back = train_probes(x, y, [r[1] for r in runs[::-1]], [r[2] for r in runs[::-1]]).flip(0)
    for i in (0,4,8):
        alone = train_probes(x, y, [runs[i][1]], [runs[i][2]])[0]
        assert (together[i]-alone).abs().max() < 1e-5 and (back[i]-alone).abs().max() < 1e-5

def test_draws():
    y = np.repeat([0,1,2], [40,30,35])
    for k in (1,7,30):
        a,plan,_ = plan_run(y, k, 3, 8)
        assert np.bincount(y[a]).tolist() == [k]*3 and len(set(a)) == 3*k
        for e in plan.reshape(20,-1): assert sorted(e[e >= 0]) == sorted(a)
    assert (plan_run(y, 7, 3, 8)[0] == plan_run(y, 7, 3, 500)[0]).all(), "models must see the same draws"
    assert (plan_run(y, 7, 3, 8)[0] != plan_run(y, 7, 4, 8)[0]).any()
    with pytest.raises(ValueError): plan_run(y, 31, 0, 8)

def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score
    g = np.random.default_rng(0)
    y, x = g.choice(4, 300, p=[.6,.3,.1,0]), g.normal(size=(300,16)).astype(np.float32)
    w = torch.as_tensor(g.normal(size=(3,2,4,17)).astype(np.float32))
    acc,balanced = score_probes(w, x, y)
    for r in range(3):
        for e in range(2):
            found = (x@w[r,e,:,:-1].numpy().T + w[r,e,:,-1].numpy()).argmax(1)
            assert acc[r,e] == pytest.approx(accuracy_score(y, found))
            keep = found[np.isin(y, np.unique(y))]
            assert balanced[r,e] == pytest.approx(np.mean([(keep[y==c]==c).mean() for c in np.unique(y)]))
    few = y[:200]%3
    found = (x[:200]@w[0,0,:3,:-1].numpy().T + w[0,0,:3,-1].numpy()).argmax(1)
    assert score_probes(w[:1,:1,:3], x[:200], few)[1][0,0] == pytest.approx(balanced_accuracy_score(few, found))

@pytest.mark.parametrize("seed", range(3))
def test_the_honest_choice_does_not_see_the_test_images(seed):
    df,x = toy(120, signal=.3, seed=seed)
    df = published(df)
    a = few_shots(df, x, (1,4,16), seeds=4)
    g, at = np.random.default_rng(seed), df.index[df.split=="test"]
    other, noise = df.copy(), x.copy()
    other.loc[at,"label"] = g.permutation(other.label[at])
    noise[at] = g.normal(size=(len(at), x.shape[1]))
    for b in (few_shots(other, x, (1,4,16), seeds=4), few_shots(df, noise, (1,4,16), seeds=4)):
        assert (a.epoch == b.epoch).all() and (a.paper_epoch != b.paper_epoch).any() and (a.accuracy != b.accuracy).any()
    assert (a.paper_protocol >= a.accuracy).all()

def test_training_images_alone_are_drawn(monkeypatch):
    df,x = toy(120)
    df, seen = published(df), []
    train = train_probes
    monkeypatch.setattr(fewshot, "train_probes", lambda features, *a, **kw: seen.append(features) or train(features, *a, **kw))
    few_shots(df, x, (1,4))
    assert (seen[0] == x[df.split=="train"]).all()

def test_cuts():
    df,_ = toy(100, groups=20)
    three = three_parts(df, 0)
    assert cut_of(three) == "by group" and (three.groupby("group").split.nunique() == 1).all() and set(three.split) == {"train","val","test"}
    two = df.assign(split=np.where(df.group.str.endswith(("-1","-2","-3")), "test", "train"))
    cut = three_parts(two, 0)
    assert cut_of(cut) == "published, validation by group" and (cut.groupby("group").split.nunique() == 1).all()
    assert ((cut.split=="test") == (two.split=="test")).all() and (cut.split=="val").any() and cut.attrs["classes"] == df.attrs["classes"]
    whole = published(df)
    assert three_parts(whole, 0).equals(whole) and cut_of(three_parts(whole, 0)) == "published"
    only = three_parts(df.assign(split="train"), 0)
    assert set(only.split) == {"train","val","test"}
    assert not three_parts(df, 1).split.equals(three.split)

def test_counts_that_a_class_cannot_fill_are_left_out():
    df,x = toy(60)
    df = published(df)
    short = df.drop(df.index[(df.label=="c1") & (df.split=="train")][5:])
    t = few_shots(short.reset_index(drop=True), x[short.index], (1,4,5,6,16), seeds=2)
    assert sorted(set(t.shots)) == [1,4,5] and (t.smallest_class == 5).all()
    with pytest.raises(PathgenError, match="Toy: a class has 5 training images only, too few for 8 shots"): few_shots(short.reset_index(drop=True), x[short.index], (8,16))

def test_a_split_that_lacks_something_is_one_line():
    df,x = toy()
    df = published(df)
    with pytest.raises(PathgenError, match="no training images of c2"): few_shots(df[(df.split!="train") | (df.label!="c2")], x, (1,))
    for s in ("val","test"):
        with pytest.raises(PathgenError, match="Toy: .* images for validation"): few_shots(df[df.split!=s], x, (1,))

def test_same_numbers_twice():
    df,x = toy()
    assert few_shots(published(df), x, (1,8)).equals(few_shots(published(df), x, (1,8)))
    assert not few_shots(published(df), x, (1,8)).equals(few_shots(published(df), x, (1,8), seed=1))

def test_many_test_images_are_judged_in_blocks():
    g = np.random.default_rng(0)
    x, y = g.normal(size=(3000,8)).astype(np.float32), g.integers(0, 2, 3000)
    w = torch.as_tensor(g.normal(size=(90,80,2,9)).astype(np.float32))
    found = (torch.as_tensor(x)@w[7,9,:,:-1].T + w[7,9,:,-1]).argmax(1).numpy()
    assert score_probes(w, x, y)[0][7,9] == pytest.approx((found==y).mean())

def test_last_is_128_or_what_there_is():
    row = lambda s, k, a: dict(model="clip", set=s, title=s, shots=k, seed=0, accuracy=a, paper_protocol=a, n_classes=2, largest_share=.5)
    m = summary(pd.DataFrame([row("a",64,.1), row("a",128,.7), row("a",256,.9), row("b",16,.2), row("b",32,.5)]))
    assert m["mean_128"] == pytest.approx(.6) and (m["shots"], m["shots_least"]) == (128, 32) and m["clip_b"] == .5
    assert summary(pd.DataFrame([row("a",256,.9)]))["mean_128"] == .9

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Painted sets, a tiny model, and the files of features that the stage zeroshot would write."
    root = tmp_path_factory.mktemp("fewshot")
    clip = build_clip("tiny", device="cpu")
    save_clip(clip, root/"models/clip")
    for s in write_sets(root/"sets", ("lc_colon","pcam"), 24, standin=True):
        name,folder = s.split("=")
        df = read_set(name, root/"sets"/folder)
        images,_ = read_images(df, clip.image_px)
        write_features(root, "clip", df, clip.encode_images(images), hash=clip.hash)
        write_features(root, "histogram", df, colour_histogram(images), hash="")
    return root

def stage(data, **kw):
    known = dict(data=data, seed=0, device="cpu", sets=["lc_colon","pcam"], models=["clip","histogram"], shots=[1,4,99], seeds=2, epochs=20, batch=32, lr=.01,
        val_share=.2, test_share=.3, finetune_sets=["lc_colon"], finetune_models=["clip"], finetune_epochs=1, finetune_batch=16, finetune_lr=.0001)
    return run_fewshot(**known | kw)

def test_the_stage(data, monkeypatch):
    r = stage(data)
    t, m = read_table(data/"eval/fewshot.parquet"), read_json(data/"metrics/fewshot.json")
    assert set(t.model) == {"clip","histogram"} and set(t.shots) == {1,4} and len(t) == 2*2*2*2
    assert dict(t.groupby("set").cut.first()) == dict(lc_colon="by group", pcam="published") and t.title.str.endswith("(stand-in)").all()
    assert m["chance"] == .5 and m["shots"] == 4 and {"mean_128","mean_128_sd","histogram","clip_pcam","finetune_clip_lc_colon","sets_above_histogram"} <= set(m)
    assert r["leaks"].set.unique().tolist() == ["lc_colon"]
    tuned = read_table(data/"eval/finetune.parquet")
    assert len(tuned) == 1 and m["finetune_clip_lc_colon"] == pytest.approx(tuned.accuracy.iloc[0], abs=1e-4)
    before = {p:(data/p).read_bytes() for p in ("eval/fewshot.parquet","eval/finetune.parquet","metrics/fewshot.json")}
    monkeypatch.setattr(fewshot, "augment", lambda *a: pytest.fail("trained again"))
    stage(data)
    assert before == {p:(data/p).read_bytes() for p in before}

def test_towers_that_are_done_stay_and_others_are_trained(data, monkeypatch):
    begun, show = [], fewshot.progress
    def watched(items, desc):
        begun.append(desc)
        if len(begun) == 2: raise KeyboardInterrupt
        return show(items, desc)
    monkeypatch.setattr(fewshot, "progress", watched)
    args = dict(sets=["lc_colon","pcam"], models=["clip"], like="clip", seed=5, device="cpu", val_share=.2, test_share=.3, epochs=1, batch=16, lr=1e-4, head_lr=.01)
    with pytest.raises(KeyboardInterrupt): tune_all(data, **args)
    t = tune_all(data, **args)
    assert t.set.tolist() == ["lc_colon","pcam"] and begun[2:] == ["clip on pcam epoch 1"]
    tune_all(data, **args)
    assert len(begun) == 3
    tune_all(data, **args | dict(lr=2e-4))
    assert len(begun) == 5

def test_fine_tuning_picks_on_validation(data):
    g = np.random.default_rng(0)
    images, y = g.integers(0, 255, (40,112,112,3)).astype(np.uint8), np.arange(40)%2
    rows = np.split(np.arange(40), [16,28])
    clip = lambda: load_clip(str(data/"models/clip"), "cpu")
    a = fine_tune(clip(), images, y, rows, epochs=3, batch=8)
    lie = y.copy(); lie[rows[2]] = 1-lie[rows[2]]
    b = fine_tune(clip(), images, lie, rows, epochs=3, batch=8)
    assert (a["epoch"],a["val"]) == (b["epoch"],b["val"]) and a["accuracy"] == pytest.approx(1-b["accuracy"])

@pytest.mark.parametrize("step", [2, 6])
def test_a_tower_that_comes_apart_is_said_and_not_judged(data, monkeypatch, step):
    n, cross = [], torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *a: n.append(0) or cross(*a)*(float("nan") if len(n) == step else 1))
    monkeypatch.setattr(fewshot, "_judge", lambda *a: (.5,.5) if len(n) < step else pytest.fail("judged"))
    g = np.random.default_rng(0)
    with pytest.raises(PathgenError, match=f"^m epoch {(step+1)//4+1}: .* no longer numbers .*: lower finetune_lr$"):
        fine_tune(load_clip(str(data/"models/clip"), "cpu"), g.integers(0, 255, (40,112,112,3)).astype(np.uint8), np.arange(40)%2, np.split(np.arange(40), [24,32]), epochs=2, batch=8, desc="m")
    assert len(n) == 3*((step+2)//3)

def test_fine_tuning_leaves_words_alone(data):
    clip = load_clip(str(data/"models/clip"), "cpu")
    before = {k:v.clone() for k,v in clip.model.state_dict().items()}
    fine_tune(clip, np.zeros((12,112,112,3), np.uint8), np.arange(12)%2, np.split(np.arange(12), [6,9]), epochs=1, batch=3)
    changed = {k.split(".")[0] for k,v in clip.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"visual"}

def test_pictures_on_demand_are_those_in_memory(data, monkeypatch):
    args = dict(data=data, like="clip", seed=0, device="cpu", val_share=.2, test_share=.3, epochs=1, batch=16, lr=1e-4, head_lr=.01)
    item = ("pcam", "clip", str(data/"models/clip"))
    tune_one(item, data/"a.parquet", **args)
    monkeypatch.setattr(fewshot, "MEMORY", 0)
    tune_one(item, data/"b.parquet", **args)
    assert read_table(data/"a.parquet", ["accuracy","val","epoch"]).equals(read_table(data/"b.parquet", ["accuracy","val","epoch"]))

def test_a_set_of_copies_without_its_clusters_is_said_to_leak(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PATHGEN_PROGRESS", str(tmp_path/"terminal"))
    kw = dict(sets=["lc_colon"], models=["histogram"], finetune_sets=[])
    assert not stage(data, **kw)["copies"]
    df,x = fewshot.read_features(data, "histogram", "lc_colon")
    monkeypatch.setattr(fewshot, "read_features", lambda *a: (df.assign(group=""), x))
    said, = stage(data, **kw)["copies"]
    assert said.startswith("LC-Colon (stand-in): no clusters.csv") and said in (tmp_path/"terminal").read_text()

def test_models_without_weights_are_reported(data):
    r = stage(data, models=["conch","clip","histogram"], finetune_models=["gone=../no/such/model","clip"])
    assert [(l.model,l.set) for l in r["lost"].itertuples()] == [("conch","lc_colon"),("conch","pcam"),("gone","lc_colon")]
    assert r["lost"].error.str.contains("with the model conch|no such model folder").all() and not r["lost"].error.str.contains("\n").any()
    t, tuned, m = read_table(data/"eval/fewshot.parquet"), read_table(data/"eval/finetune.parquet"), read_json(data/"metrics/fewshot.json")
    assert (t.error!="").sum() == 2 and (t.model=="clip").sum() == 8 and tuned.error.ne("").tolist() == [False,True]
    assert "finetune_clip_lc_colon" in m and not any("gone" in k or "conch" in k for k in m)

def test_faults_are_one_line(data, tmp_path):
    with pytest.raises(PathgenError, match="run the stage zeroshot with the model none"): stage(data, models=["none"])
    (data/"models/own").mkdir()
    with pytest.raises(PathgenError, match="run the stage zeroshot with the model own"): stage(data, models=["own","clip"])
    with pytest.raises(PathgenError, match="models/none is missing"): stage(data, finetune_models=["none"])
    with pytest.raises(PathgenError, match="at least one each of sets, models and shots"): stage(data, shots=[])
    df = fewshot.read_features(data, "clip", "lc_colon")[0]
    (tmp_path/"x.jpeg").write_bytes(b"no image")
    df.loc[3,"path"] = str(tmp_path/"x.jpeg")
    with pytest.raises(PathgenError, match="x.jpeg cannot be read"): Pictures(df, 32)[np.array([1,3])]

@pytest.mark.parametrize("profile", ["params.yaml", *sorted(f"profiles/{p.name}" for p in (ROOT/"profiles").glob("*.yaml"))])
def test_what_a_profile_asks_for_is_made(profile):
    p = yaml.safe_load((ROOT/profile).read_text())
    f, z = p["fewshot"], p["zeroshot"]
    assert set(f["sets"]) <= {s.partition("=")[0] for s in z["sets"]} and set(f["finetune_sets"]) <= set(f["sets"])
    assert set(f["models"]) <= {m.partition("=")[0] for m in z["models"]} | {"histogram"}

def test_real_tiles_leak(real):
    "LC25000: cut by image, a colour histogram looks better than it is."
    df = read_set("lc_lung", real/"patches/lc25000")
    images,_ = read_images(df, 64)
    found = leak(df, standardise(colour_histogram(images), np.arange(len(df))), [64], seeds=5)
    assert .6 < found["by_group"] < found["by_image"]
