"Whole slides: stacked runs give the plain loop's weights, nothing is chosen on test slides, a bad bag is one line."
import json, math
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from conftest import ROOT
from pathgen import mil
from pathgen.clip import build_clip, load_clip, save_clip
from pathgen.core import PathgenError, read_json, read_table
from pathgen.mil import *
from pathgen.wsi import Bag, read_bag, write_bag
from scipy.special import softmax

def toy(n=40, classes=2, dim=16, instances=(12,40), shift=2., seed=0):
    "Bags and classes; a tenth of a bag of class c > 0 is moved in the direction of c."
    g = np.random.default_rng(seed)
    towards, y, bags = shift*np.random.default_rng(99).normal(size=(classes,dim)), np.arange(n)%classes, []
    for c in y:
        x = g.normal(size=(g.integers(*instances),dim))
        if c: x[:math.ceil(len(x)/10)] += towards[c]
        bags.append(x.astype(np.float16))
    return bags, y

def lay(bags, epochs, branches, seeds, classes=2, hidden=12, gate=6, **kw):
    shapes = layers(bags[0].shape[1], classes, branches, hidden, gate)
    return shapes, [plan_run(shapes, len(bags), epochs, s, **kw) for s in seeds]

# One after the other, side by side

@pytest.mark.parametrize("room", [10**6, 0], ids=["bags stacked","bags in turn"])
@pytest.mark.parametrize("branches,classes,instances", [(1,2,(12,40)), (5,2,(12,40)), (5,4,(1,14)), (3,3,(20,21))])
def test_side_by_side_is_one_after_the_other(monkeypatch, room, branches, classes, instances):
    monkeypatch.setattr(mil, "ROOM", room)
    bags, y = toy(30, classes, instances=instances)
    train, val, lrs = (bags[:20],y[:20]), (bags[20:],y[20:]), [1e-3,3e-3]
    shapes,plans = lay(train[0], 5, branches, [3,(0,1),7], classes)
    fast,losses = train_runs(train, val, lrs, plans, shapes, wd=1e-2)
    assert fast.shape[:2] == (2,3) and losses.shape == (5,2,3)
    for l,lr in enumerate(lrs):
        for s,plan in enumerate(plans):
            slow,own = plain_run(train, val, lr, plan, shapes, wd=1e-2)
            assert (fast[l,s]-slow).abs().max() < 1e-5 and np.abs(losses[:,l,s]-own).max() < 1e-5
            assert (slow-torch.as_tensor(plan.first)).abs().max() > 1e-3, "nothing was learned"

@pytest.mark.parametrize("room", [10**6, 0])
def test_a_run_does_not_depend_on_its_company(monkeypatch, room):
    monkeypatch.setattr(mil, "ROOM", room)
    bags,y = toy(24)
    train,val = (bags[:16],y[:16]), (bags[16:],y[16:])
    shapes,plans = lay(train[0], 3, 5, range(4))
    together,_ = train_runs(train, val, [1e-3,2e-3], plans, shapes)
    back,_ = train_runs(train, val, [2e-3,1e-3], plans[::-1], shapes)
    assert (together-back.flip(0,1)).abs().max() < 1e-5
    alone,_ = train_runs(train, val, [2e-3], [plans[2]], shapes)
    assert (together[1,2]-alone[0,0]).abs().max() < 1e-5
    assert (together[0]-together[1]).abs().max() > 1e-4 and (together[0,0]-together[0,1]).abs().max() > 1e-2

def test_large_bags_are_not_stacked(monkeypatch):
    seen, plain = [], mil.forward
    monkeypatch.setattr(mil, "forward", lambda w, x, *a: seen.append(x.shape) or plain(w, x, *a))
    g = np.random.default_rng(0)
    big = [g.normal(size=(n,4)).astype(np.float16) for n in (3000,10)]
    shapes,plans = lay(big, 1, 5, range(3))
    train_runs((big,[0,1]), (big[1:],[1]), [1e-3], plans, shapes)
    assert all(len(s)==2 for s in seen)
    seen.clear()
    train_runs((big[1:]*2,[0,1]), (big[1:],[1]), [1e-3], plans, shapes)
    assert (3,10,4) in seen

def test_seeds():
    bags,_ = toy(9)
    shapes,(a,b,c) = lay(bags, 4, 5, [0,0,1])
    assert all((getattr(a, k) == getattr(b, k)).all() for k in ("first","order","noise"))
    assert all((getattr(a, k) != getattr(c, k)).any() for k in ("first","order","noise"))
    assert (np.sort(a.order.reshape(4,9)) == np.arange(9)).all() and len(set(map(tuple, a.order.reshape(4,9)))) > 1
    _,(one,) = lay(bags, 4, 1, [0])
    assert one.noise is None and (one.order == a.order).all(), "both heads see the same order"

def test_bf16_stays_near():
    bags,y = toy(24)
    train,val = (bags[:16],y[:16]), (bags[16:],y[16:])
    shapes,plans = lay(train[0], 3, 5, range(2))
    exact = train_runs(train, val, [1e-3], plans, shapes)[1]
    with rounding("bf16"): near = train_runs(train, val, [1e-3], plans, shapes)[1]
    assert np.abs(exact-near).max() < .02

# The heads

def test_abmil_is_torchmils():
    "Weights, a bag and the answer of torchmil 1.0.2."
    t = {k:torch.as_tensor(v) for k,v in np.load(ROOT/"tests/torchmil_abmil.npz").items()}
    _same_as_torchmil(t, t["x"], t["logit"], t["attention"])

def _same_as_torchmil(t, x, logit, attention):
    w = dict(fc=t["feat_ext.0.weight"].T, fc_bias=t["feat_ext.0.bias"][None], attend=t["pool.fc2.weight"].T,
        gate=torch.cat([t["pool.fc1.module.weight"],t["pool.fc_gated.module.weight"]]).T, gate_bias=torch.cat([t["pool.fc1.module.bias"],t["pool.fc_gated.module.bias"]])[None])
    c = t["classifier.module.weight"].T
    w |= dict(slide=torch.cat([0*c,c], 1), slide_bias=torch.cat([torch.zeros(1),t["classifier.module.bias"]])[None])
    slide,branch,a = forward(w, x)
    assert branch is None and slide[0] == 0
    assert abs(slide[1]-logit[0]) < 1e-5 and (a[:,0]-attention).abs().max() < 1e-5

def test_abmil_is_torchmils_at_full_size():
    models = pytest.importorskip("torchmil.models", reason="torchmil is not installed; its stored answer is compared in any case")
    front = torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.ReLU())
    m, x = models.ABMIL((512,), att_dim=128, gated=True, feat_ext=front).eval(), torch.randn(1, 300, 512)
    with torch.no_grad(): logit,f = m(x, return_att=True)
    _same_as_torchmil(m.state_dict(), x[0], logit, f[0].softmax(0))

@pytest.mark.parametrize("m", [2,5])
def test_acmil_loss_is_the_loop(m):
    g = torch.Generator().manual_seed(m)
    w = {k:torch.randn(s, generator=g) for k,(s,_) in layers(8, 3, m, 6, 4).items()}
    x, hide = torch.randn(30, 8, generator=g), torch.as_tensor(hidden_ranks(np.random.default_rng(0).random((10,m)), 30))
    slide,branch,a = forward(w, x, hide)
    h = (x@w["fc"]+w["fc_bias"]).relu()
    loss, att = 0., []
    for i in range(m):
        e = torch.stack([(torch.tanh(v@w["gate"][:,:4]+w["gate_bias"][0,:4])*torch.sigmoid(v@w["gate"][:,4:]+w["gate_bias"][0,4:]))@w["attend"][:,i] for v in h])
        for rank,n in enumerate(e.argsort(descending=True)[:10].tolist()):
            if hide[rank,i]: e[n] = -1e9
        att.append(e.softmax(0))
        loss += F.cross_entropy((att[-1]@h@w["branch"][i]+w["branch_bias"][i]), torch.tensor([2]))/m
    loss += F.cross_entropy(torch.stack(att).mean(0)@h@w["slide"]+w["slide_bias"], torch.tensor([2]))
    for i in range(m):
        for j in range(i+1, m): loss += 2/(m*(m-1))*F.cosine_similarity(att[i], att[j], dim=0)
    assert abs(mil_loss(slide, branch, a, 2)-loss) < 1e-6*max(1, float(loss))

def test_masks():
    for n in (1,2,3,9,10,500):
        hide = hidden_ranks(np.random.default_rng(n).random((10,5)), n)
        assert hide.shape == (min(n,10),5) and (hide.sum(0) == int(min(n,10)*.6)).all()
    assert hidden_ranks(None, 30) is None
    hides = [hidden_ranks(np.random.default_rng(s).random((10,5)), 30) for s in (0,0,1)]
    assert (hides[0] == hides[1]).all() and (hides[0] != hides[2]).any()
    shapes = layers(8, 2, 5, 6, 4)
    w = unpack(torch.randn(sum(math.prod(s) for s,_ in shapes.values())), shapes)
    a = forward(w, torch.randn(1, 8), torch.as_tensor(hidden_ranks(np.random.default_rng(0).random((10,5)), 1)))[2]
    assert (a == 1).all(), "a bag of one patch keeps it"

def test_nothing_is_masked_at_evaluation(monkeypatch):
    bags,y = toy(24)
    hides, plain = [], mil.forward
    monkeypatch.setattr(mil, "forward", lambda w, x, hide=None, pad=None: hides.append((hide is not None, torch.is_grad_enabled())) or plain(w, x, hide, pad))
    fits,_ = fit_head((bags[:8],y[:8]), (bags[8:16],y[8:16]), "acmil", 2, Recipe(lrs=(1e-3,), seeds=1, epochs=2, hidden=6, gate=4))
    assert all(hidden == learning for hidden,learning in hides) and {h for h,_ in hides} == {True,False}
    hides.clear()
    assert (slide_logits(fits[0], bags) == slide_logits(fits[0], bags)).all() and not any(h for h,_ in hides)

# What is chosen, on what

def test_choose():
    losses = np.array([[[9,1.],[3,3]], [[9,9],[2,4]], [[5,9],[4,2.5]]]) # epochs, rates, seeds
    rate,epochs,kept = choose(losses)
    assert (rate, epochs.tolist(), kept) == (1, [1,2], 0)

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A CAMELYON16 without pixels, bags of two encoders of which one is a CLIP."
    root = tmp_path_factory.mktemp("mil")
    clip = build_clip("tiny", device="cpu")
    save_clip(clip, root/"models/clip")
    ids = [f"{c}_{i:03d}" for c in ("normal","tumor") for i in range(16)] + [f"test_{i:03d}" for i in range(12)]
    for n,k in enumerate(ids):
        folder = root/"c16"/("testing/images" if k.startswith("test") else f"training/{k[:-4]}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder/f"{k}.tif").touch()
    (root/"c16/testing/reference.csv").write_text("".join(f"test_{i:03d},{'Tumor' if i%2 else 'Normal'},,\n" for i in range(12)))
    for label,dim in (("other",16),("clip",clip.dim)):
        (root/label).mkdir()
        bags,_ = toy(len(ids), dim=dim, seed=dim)
        ill = [k.startswith("tumor") or k.startswith("test") and int(k[5:])%2 for k in ids]
        sick, well = ([b for b,c in zip(bags, np.arange(len(ids))%2) if c==v] for v in (1,0))
        for k,i in zip(ids, ill):
            f = (sick if i else well).pop()
            xy = 224*np.stack(np.divmod(np.arange(len(f)), 5), 1)
            write_bag(root/label/f"{k}.h5", xy, f, patch_size_level0=224, encoder=load_clip(str(root/"models/clip"), "cpu").hash if label=="clip" else None)
    write_bag(root/"other/more.h5", [[0,0]], np.zeros((1,16)))
    return root

def stage(data, **kw):
    known = dict(data=data, seed=0, device="cpu", workers=1, max_failed=.1, sets=["camelyon16=c16"], encoders=["other=other","clip=clip"], heads=["abmil","acmil"],
        lrs=[.001,.003], seeds=2, epochs=4, wd=1e-4, hidden=12, gate=6, branches=5, top_k=10, mask_share=.6, products="ieee", val_share=.25, test_share=.3, zero_shot=["clip"],
        zero_shot_ks=[1,5,100], truth=None)
    return run_mil(**known | kw)

def kept(data): return {str(p.relative_to(data)):p.read_bytes() for f in ("models/mil","eval/mil/attention") for p in sorted((data/f).rglob("*")) if p.is_file() and ".done" not in p.parts}

def test_the_stage(data, monkeypatch):
    r = stage(data)
    m, t = read_json(data/"metrics/mil.json"), read_table(data/"eval/mil/results.parquet", ["encoder","head","seed","auc","f1","title","n_test"])
    assert t.groupby(["encoder","head"]).size().to_dict() == {("other","abmil"):2, ("other","acmil"):2, ("clip","abmil"):2, ("clip","acmil"):2, ("clip","zeroshot"):1}
    assert (t.n_test == 12).all() and t.auc.between(0, 1).all()
    assert {"auc_abmil","auc_acmil","f1_abmil","auc_acmil_sd","zero_shot_auc","ece","ece_before","brier","auc_camelyon16_other_abmil","unlabelled"} <= set(m)
    assert m["unlabelled"] == 1 and m["failed"] == 0 and m["slides"] == 44
    assert len(r["notes"]) == 1 and "other: no zero-shot row" in r["notes"][0]
    split = pd.read_csv(data/"eval/mil/splits/camelyon16.csv")
    assert set(split.split) == {"train","val","test"} and (split[split.split=="test"].slide_id.str.startswith("test")).all()
    assert len(list((data/"eval/mil/attention/camelyon16_clip_acmil").glob("*.geojson"))) == 12
    assert table3(r["results"]).loc[("zeroshot","clip")].notna().all()
    own = r["looks"].iloc[0]
    drawn = read_json(data/f"eval/mil/attention/camelyon16_clip_{own['head']}/{own.slide_id}.geojson")["features"]
    assert own.attention.tolist() == pytest.approx([f["properties"]["measurements"]["attention"] for f in drawn])
    before = kept(data)
    monkeypatch.setattr(mil, "_tensors", lambda *a: pytest.fail("trained again"))
    stage(data)
    assert before == kept(data)

def test_a_set_of_ones_own(data, tmp_path):
    import shutil
    shutil.copytree(data, tmp_path/"d", ignore=shutil.ignore_patterns("mil","eval"))
    slides = [p for p in sorted((tmp_path/"d/c16").rglob("*.tif")) if not p.stem.startswith("test")]
    (tmp_path/"d/c16/labels.csv").write_text("\n".join(["slide_id,label", *(f"{p.name},{p.stem[:-4]}" for p in slides), *(f"test_{i:03d},{'tumor' if i%2 else 'normal'}" for i in range(12))]))
    r = stage(tmp_path/"d", sets=["mine=c16"])
    split = pd.read_csv(tmp_path/"d/eval/mil/splits/mine.csv")
    assert len(split) == 44 and split.groupby("split").label.nunique().to_dict() == dict(test=2, train=2, val=2) and 11 <= (split.split=="test").sum() <= 15
    assert r["results"].groupby("head").size().to_dict() == dict(abmil=4, acmil=4, zeroshot=1) and set(r["results"].title) == {"mine"}

def test_test_labels_choose_nothing(data, tmp_path, monkeypatch):
    import shutil
    for d in ("true","lied"): shutil.copytree(data, tmp_path/d, ignore=shutil.ignore_patterns("mil","eval"))
    table = tmp_path/"lied/c16/testing/reference.csv"
    table.write_text(table.read_text().translate(str.maketrans("TN","NT")).replace("Numor","Normal").replace("Tormal","Tumor"))
    truth, lied = (pd.read_csv(tmp_path/d/"c16/testing/reference.csv", header=None)[1] for d in ("true","lied"))
    assert set(truth) == {"Tumor","Normal"} and (truth != lied).all()
    seen, fit = [], mil.fit_head
    monkeypatch.setattr(mil, "fit_head", lambda train, val, *a: seen.append(len(train[1])+len(val[1])) or fit(train, val, *a))
    a,b = (stage(tmp_path/d) for d in ("true","lied"))
    assert seen == [32]*8, "training and validation slides alone"
    assert kept(tmp_path/"true") == kept(tmp_path/"lied")
    same = ["set","encoder","head","seed","lr","epoch","temperature","k"]
    pd.testing.assert_frame_equal(a["results"][same], b["results"][same])
    assert (a["results"].auc != b["results"].auc).all()
    assert all((i["slides"].label[i["slides"].split=="test"] == "").all() for i in a["items"])

def test_a_killed_stage_goes_on(data, tmp_path, monkeypatch):
    import shutil
    shutil.copytree(data, tmp_path/"d", ignore=shutil.ignore_patterns("mil","eval"))
    begun, show = [], mil.progress
    def watched(steps, desc):
        if not desc.startswith("attention"): begun.append(desc)
        if len(begun) == 3: raise KeyboardInterrupt
        return show(steps, desc)
    monkeypatch.setattr(mil, "progress", watched)
    with pytest.raises(KeyboardInterrupt): stage(tmp_path/"d")
    begun.insert(0, "before")
    stage(tmp_path/"d")
    assert begun[4:] == ["camelyon16 clip abmil","camelyon16 clip acmil"]
    stage(data)
    assert kept(tmp_path/"d") == kept(data)
    stage(tmp_path/"d", heads=["abmil"], encoders=["other=other"], epochs=3)
    assert begun[6:] == ["camelyon16 other abmil"] and not (tmp_path/"d/models/mil/camelyon16_clip_abmil").exists()

# Scores

def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score
    g = np.random.default_rng(0)
    for k in (2,4):
        z,y = 2*g.normal(size=(200,k)), np.r_[np.arange(k), g.integers(0, k, 200-k)]
        p, s = softmax(z, 1), judge(z, y, 2.)
        assert s["brier"] == pytest.approx(brier_score_loss(y, softmax(z/2, 1), labels=range(k), scale_by_half=True))
        assert s["f1"] == pytest.approx(f1_score(y, p.argmax(1), average="macro"))
        assert s["auc"] == pytest.approx(np.mean([roc_auc_score(y==c, p[:,c]) for c in range(k)]))

def test_calibration():
    g = np.random.default_rng(0)
    p = np.c_[1-(q := np.array([.05,.95,.95,.55])), q]
    assert reliability(p, np.array([0,1,0,0])).right.tolist() == [0,2/3]
    z = g.normal(size=(4000,3))
    y = (softmax(z, 1).cumsum(1) > g.random(4000)[:,None]).argmax(1) # true to its probabilities
    assert fit_temperature(z, y) == pytest.approx(1, abs=.08) and fit_temperature(5*z, y) == pytest.approx(5, abs=.4)
    assert judge(z, y)["ece"] < .03 < .15 < judge(5*z, y)["ece"]
    assert .1 <= fit_temperature(np.eye(3), np.arange(3)) < .12, "bounded where all is right"

def test_zero_shot_takes_all_patches_of_a_small_bag():
    s = np.eye(4, dtype=np.float32)[:2]
    x = np.array([[2,0,0,0],[0,0,3,0],[1,1,0,0]], np.float16)
    top = pool_top(x, s, (1,2,100))
    assert np.allclose(top[0], [1,.5**.5]) and np.allclose(top[2], [(1+.5**.5)/3, .5**.5/3])
    pooled = np.zeros((6,2,2)); y = np.arange(6)%2
    pooled[:,1] = np.eye(2)[y]
    assert choose_k(pooled, y) == 1 and choose_k(pooled[:,::-1], y) == 0 and choose_k(pooled[:,[1,1]], y) == 0

# Bags and models

def test_encoders_and_clips_that_are_missing_are_reported(data):
    r = stage(data, encoders=["gone=none","clip=clip"], heads=["abmil"], zero_shot=["conch=../no/such/model","clip"])
    assert "zero-shot with conch: ../no/such/model: no such model folder" in r["notes"][0] and "camelyon16, gone: " in r["notes"][1]
    assert set(r["results"].encoder) == {"clip"} and r["errors"].encoder.tolist() == ["gone"] and r["metrics"]["encoders"] == 1
    assert set(r["results"]["head"]) == {"abmil","zeroshot"}
    with pytest.raises(PathgenError, match="none is missing"): stage(data, encoders=["clip=clip","gone=none"])

def test_faults_are_one_line(data, tmp_path):
    for kw,say in ((dict(heads=["transmil"]), "transmil, which is none of abmil, acmil"), (dict(sets=[]), "at least one each of sets"), (dict(sets=["camelyon16"]), "write LABEL=FOLDER"),
        (dict(encoders=["x=none"]), "none is missing"), (dict(sets=["nosuch=c16"]), "labels.csv is missing, and nosuch is no published set"), (dict(zero_shot=["nosuch"]), "nosuch is missing")):
        with pytest.raises(PathgenError, match=say): stage(data, **kw)
    bags = tmp_path/"bags"
    bags.mkdir()
    for p in (data/"other").glob("*.h5"): (bags/p.name).write_bytes(p.read_bytes())
    write_bag(bags/"test_000.h5", np.zeros((0,2)), np.zeros((0,16)))
    write_bag(bags/"test_001.h5", [[0,0]], [[np.nan]*16])
    write_bag(bags/"test_002.h5", [[0,0]], np.zeros((1,8)))
    (bags/"test_003.h5").write_bytes(b"no bag")
    (bags/"test_004.h5").unlink()
    own = read_bag(bags/"test_005.h5")
    write_bag(bags/"test_005.h5", own.coords, own.features, **own.attrs | dict(encoder="another"))
    r = stage(data, encoders=[f"spoilt={bags}"], heads=["abmil"], zero_shot=[], max_failed=.2)
    for e,say in zip(r["errors"].error, ("holds no patch", "not finite", "8 dimensions by the encoder unknown, most of the others 16 dimensions", "cannot be read as a bag", "is missing", "16 dimensions by the encoder another, most")): assert say in e and "\n" not in e
    assert r["errors"].item.tolist() == [f"test_00{i}" for i in range(6)] and r["metrics"]["failed"] == 6
    with pytest.raises(PathgenError, match="6 of 44 labelled slides have no good bag in .*test_000"): stage(data, encoders=[f"spoilt={bags}"], zero_shot=[])
    split = pd.read_csv(data/"eval/mil/splits/camelyon16.csv")
    for k in split.slide_id[(split.split=="val") & (split.label=="tumor")]: (bags/f"{k}.h5").unlink()
    with pytest.raises(PathgenError, match="CAMELYON16, spoilt: no slide for validation is tumor"): stage(data, encoders=[f"spoilt={bags}"], zero_shot=[], max_failed=.9)

def test_a_model_for_ones_own_bag(data, tmp_path):
    stage(data)
    model = load_mil(data/"models/mil/camelyon16_clip_acmil")
    bag = read_bag(data/"clip/test_001.h5")
    p,a = predict(model, bag)
    assert set(p) == {"normal","tumor"} and sum(p.values()) == pytest.approx(1) and a.sum() == pytest.approx(1, abs=1e-5) and len(a) == len(bag)
    said = read_table(data/"models/mil/camelyon16_clip_acmil/predictions.parquet", ["normal","tumor","slide_id","seed"])
    row = said[(said.slide_id=="test_001") & (said.seed==model.config["seed"][1])][["normal","tumor"]].to_numpy()
    assert softmax(row[0]/model.config["temperature"]) == pytest.approx(list(p.values()), abs=1e-5)
    with pytest.raises(PathgenError, match="made with the encoder another, the model wants"): predict(model, Bag(bag.coords, bag.features, dict(encoder="another")))
    with pytest.raises(PathgenError, match="is empty"): predict(model, Bag(None, bag.features[:0], {}))
    (tmp_path/"config.json").write_text("{}"); (tmp_path/"model.safetensors").write_bytes(b"\x10")
    with pytest.raises(PathgenError, match="model.safetensors cannot be read"): load_mil(tmp_path)

def test_heatmap_and_geojson():
    bag = Bag(np.array([[100,50],[612,50],[100,562]]), np.zeros((3,4)), {})
    assert patch_side(bag) == 512 and patch_side(Bag(bag.coords, bag.features, dict(patch_size_level0=256))) == 256
    im,extent = heatmap(bag, [1.,2,3])
    assert np.array_equal(im, [[1,2],[3,np.nan]], equal_nan=True) and extent == (100,1124,1074,50)
    found = json.loads(json.dumps(attention_geojson(bag, [.5,.3,.2])))
    assert found["features"][1]["geometry"]["coordinates"][0][2] == [1124,562]
    assert found["features"][0]["properties"]["measurements"] == pytest.approx({"attention":.5, "attention relative":1.5})
    with pytest.raises(PathgenError, match="no coords"): patch_side(Bag(None, bag.features, {}))
    assert np.isnan(in_lesion(np.ones(3)/3, np.zeros(3))).all()

@pytest.mark.parametrize("slide,n", [("TCGA-AD-6964-01Z-00-DX1",777), ("TCGA-3X-AAVA-01Z-00-DX1",180)])
def test_real_bags(real, slide, n):
    "Bags of others: one names its array `feats` and has coords, the other `features` and none; neither has attributes."
    bag = read_good_bag(real/f"bags/{slide}/features.h5")
    assert bag.features.shape == (n,512) and not bag.attrs
    bags, y = [bag.features, bag.features[:n//2]]*4, np.arange(8)%2
    fits,losses = fit_head((bags,y), (bags,y), "acmil", 2, Recipe(lrs=(1e-3,), seeds=1, epochs=1, hidden=16, gate=8))
    model = Mil(fits[0], dict(classes=["a","b"], dim=512, temperature=1., encoder="", encoder_name=""))
    p,a = predict(model, bag)
    assert np.isfinite(losses).all() and len(a) == n and a.sum() == pytest.approx(1, abs=1e-4)
    if bag.coords is None:
        with pytest.raises(PathgenError, match="no coords"): heatmap(bag, a)
    else:
        im,_ = heatmap(bag, a)
        assert patch_side(bag) == 512 and np.isfinite(im).sum() == n
        assert len(attention_geojson(bag, a)["features"]) == n
