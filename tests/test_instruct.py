"PathGen-Instruct: nothing false, nothing leaked, nothing guessable, and every question that is left out has its reason."
import io, json
import numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen import chat
from pathgen.core import PathgenError, read_json, read_table, write_table
from pathgen.findings import claims
from pathgen.instruct import (blind_chances, candidates, choice_by_rule, dialogue_by_rule, evaluation_looks, first_images, guard, guess_by_model, lay_out,
                              llava_form, run_instruct, statistics)
from pathgen.morphometry import PHRASES, describe_findings

HOW = dict(seed=0, workers=1, max_failed=.1, max_requests=10, provider="builtin", retries=0, choice_images=100, choice_rounds=1000, dialogue_images=100,
           dialogue_rounds=1000, open_share=.5, evaluation_images=[], evaluation_slides=[], alike=.97, blind=None)

def run(root, **kw): return run_instruct(root, **HOW | kw)

def texts(n):
    "Descriptions of made-up fields."
    g, out = np.random.default_rng(0), []
    tissue = ("normal_glands","infiltrating_glands","cribriform","solid_growth","fibrous_stroma","smooth_muscle","adipose","lymphocytes","necrosis","mucin","hemorrhage")
    nuclei = ("enlarged_nuclei","hyperchromasia","pleomorphism","prominent_nucleoli","mitoses")
    for i in range(n):
        bad = g.random() < .5
        said = {c:True for c in g.permutation(tissue)[:g.integers(2, 5)]}
        said |= {c:bool(bad and g.random() < .6) for c in nuclei} | ({} if bad else dict(uniform_nuclei=True)) | dict(malignancy=bool(bad))
        out.append(describe_findings(said, "colon", i))
    return out

def make(root, n=32):
    "A root with pairs, texts and images of eight patients, of whom one tests."
    g = np.random.default_rng(1)
    df = pd.DataFrame(dict(patch_id=[f"s{i%8}_{i}_0" for i in range(n)], slide_id=[f"s{i%8}" for i in range(n)], patient_id=[f"p{i%8}" for i in range(n)], source="colon", x=range(n), y=0, px=672))
    df["split"] = df.patient_id.map(lambda p: dict(p6="val", p7="test").get(p, "train"))
    for r in df.itertuples():
        f = root/"patches"/r.slide_id/f"{r.patch_id}.jpg"
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(g.integers(0, 256, (12,12,3)), np.ones((8,8,1))).astype(np.uint8)).save(f)
    write_table(df, root/"pairs/index.parquet")
    write_table(df[["patch_id","slide_id"]].assign(text=texts(n)), root/"text/revisions.parquet")
    return root

@pytest.fixture(scope="module")
def root(tmp_path_factory): return make(tmp_path_factory.mktemp("instruct"), 64)

@pytest.fixture(scope="module")
def made(root): return run(root)

@pytest.fixture(scope="module")
def words(real): return [r["caption"] for r in json.loads((real/"captions/PathGen-1.6M_sample.json").read_text())[::25]]

def borne_out(text, i=0):
    "Hold all questions on a description against it; returns the number of wrong options that it supports."
    said, doubtful = claims(text), 0
    for q in dialogue_by_rule(text, i)["questions"]: assert claims(q["answer"]).items() <= said.items(), (text, q)
    for q in choice_by_rule(text, i)["questions"]:
        right = claims(q["answer"])
        assert right and all(said.get(c) is v for c,v in right.items()), (text, q)
        assert q["answer"] in q["options"] and len(set(q["options"])) == 4
        doubtful += sum(claims(o).items() <= said.items() for o in q["options"] if o != q["answer"])
    return doubtful

def test_no_answer_says_more_than_its_description(): assert sum(borne_out(t, i) for i,t in enumerate(texts(60))) == 0

def test_released_captions_are_asked_about_as_truly(words):
    made = [(dialogue_by_rule(t, i)["questions"], choice_by_rule(t, i)["questions"]) for i,t in enumerate(words)]
    assert np.mean([bool(c) for _,c in made]) > .5 and np.mean([len(d) > 1 for d,_ in made]) > .8
    for i,t in enumerate(words):
        for q in dialogue_by_rule(t, i)["questions"]: assert claims(q["answer"]).items() <= claims(t).items(), (t, q)

def test_lengths_are_near_those_of_table_7(made):
    paper = pd.DataFrame(dict(question_words=[14.9,17.1], option_words=[3.7,np.nan], answer_words=[np.nan,33.2], questions_per_image=[1.2,5.0]), index=["multi-choice","open-ended"])
    ratio = (statistics(made["rounds"])/paper).stack().dropna()
    assert ratio.between(.75, 1.25).all(), ratio

def test_a_judgement_rests_on_what_speaks_for_it():
    text = "The field shows normal glands and infiltrating glands. The background consists of adipose tissue. The cells have uniform nuclei. The appearance favours {}."
    for word,reason,other in (("malignancy","infiltrating_glands","normal_glands"), ("a benign process","normal_glands","infiltrating_glands")):
        said = claims(dialogue_by_rule(text.format(word))["questions"][-1]["answer"])
        assert said[reason] and other not in said and "adipose" not in said

def test_wordings_vary():
    qs = [q for i,t in enumerate(texts(60)) for q in choice_by_rule(t, i)["questions"]]
    assert len({q["question"] for q in qs}) > .8*len(qs)
    said = {c:{w for q in qs for w in map(str.lower, q["options"]) if claims(w) == {c:True}} for c in ("lymphocytes","pleomorphism")}
    assert all(len(w) > 2 for w in said.values()), said

def test_only_training_and_validation_patients_are_asked_about(made):
    assert dict(made["rounds"].groupby("patient_id").split.first()) == {f"p{i}":"train" for i in range(6)} | {"p6":"val"}

def test_letters_are_even(made):
    c = made["rounds"].query("kind == 'choice'")
    for _,d in c.groupby("split"): assert np.ptp([sum(d.letter == l) for l in "ABCD"]) <= 1
    assert all(o["ABCD".index(l)] == a for o,l,a in zip(c.options, c.letter, c.answer))

def test_files(root, made):
    out, df = root/"instruct", made["rounds"]
    assert len(read_table(out/"instruct.parquet")) == len(df) and df.provider.eq("builtin").all() and df.prompt_hash.nunique() == 2
    for s in ("train","val"):
        talks = read_json(out/f"llava-{s}.json")
        assert len({t["id"] for t in talks}) == len(talks)
        for t in talks:
            said = t["conversations"]
            assert [c["from"] for c in said] == ["human","gpt"]*(len(said)//2) and (root/t["image"]).is_file()
            assert [c["value"].count("<image>") for c in said] == [1]+[0]*(len(said)-1)
        n, choice = df[df.split == s], [t["conversations"] for t in talks if "choice" in t["id"]]
        openly = [c for c in choice if "A) " not in c[0]["value"]]
        assert len(openly) in ([0] if s == "val" else [len(choice)//2, len(choice)//2+1]), "half are put openly first, none in validation"
        assert sum(len(t["conversations"])//2 for t in talks) == len(n) + (n.kind == "choice").sum() + len(openly), "a choice question has a turn for its reason"
    assert "rejected.parquet" in (out/"README.md").read_text()
    assert read_json(root/"metrics/instruct.json") == made["metrics"]

def test_again_the_same_bytes(root, made, monkeypatch):
    files = {p:p.read_bytes() for p in (root/"instruct").glob("*.*")}
    monkeypatch.setattr(chat, "ask", None)
    run(root)
    assert {p:p.read_bytes() for p in files} == files

def test_limits_keep_whole_images(root, tmp_path):
    df = pd.DataFrame(dict(patch_id=[*"aaabbbcc"], n=range(8)))
    assert list(first_images(df, 7).n) == [0,1,2,3,4,5] and len(first_images(df, 8)) == 8 and len(first_images(df, 2)) == 0

# The guard

def plant(root, patch, folder, how="jpg"):
    "Publish a patch in an evaluation set: scaled, turned, compressed anew."
    im = Image.open(root/patch).convert("RGB").resize((70,70)).transpose(Image.Transpose.ROTATE_90)
    (root/folder).mkdir(parents=True)
    if how == "jpg": im.save(root/folder/"tumour_17.jpg", quality=50); return
    import h5py
    with h5py.File(root/folder/"test_x.h5", "w") as f: f["x"] = np.stack([np.random.default_rng(0).integers(0, 256, (70,70,3), np.uint8), np.asarray(im)])

@pytest.mark.parametrize("how,name", dict(jpg="tumour_17.jpg", h5="test_x.h5[1]").items())
def test_a_planted_image_is_caught(tmp_path, how, name):
    root, folder = make(tmp_path), "sets/bach/Photos/Invasive"
    victim = candidates(root).iloc[3]
    plant(root, victim.image, folder, how)
    r = run(root, evaluation_images=["sets"])
    leak = r["rejected"].query("reason == 'evaluation image'").iloc[0]
    assert leak.patch_id == victim.patch_id and leak.like.endswith(f"{folder}/{name}") and leak.likeness > .97
    assert victim.patch_id not in set(r["rounds"].patch_id) and r["metrics"]["leaked_images"] == 1
    assert victim.image not in (root/"instruct/llava-train.json").read_text()

@pytest.mark.parametrize("slide,patient", [("other","p2"), ("s2","")])
def test_a_planted_patient_is_caught(tmp_path, slide, patient):
    root = make(tmp_path)
    write_table(pd.DataFrame(dict(slide_id=["x",slide], patient_id=["y",patient])), root/"mil/slides.parquet")
    r = run(root, evaluation_slides=["mil/slides.parquet"])
    gone = r["rejected"].query("reason == 'evaluation patient'")
    assert set(gone.slide_id) == {"s2"} and gone.like.str.endswith("mil/slides.parquet").all() and r["metrics"]["leaked_patients"] == len(gone) == 4
    assert "p2" not in set(r["rounds"].patient_id)

def test_without_a_leak_nothing_goes(tmp_path):
    root = make(tmp_path)
    noise = np.random.default_rng(5).integers(0, 256, (12,12,3)).astype(np.uint8)
    (root/"sets").mkdir()
    Image.fromarray(noise).resize((96,96)).save(root/"sets/a.png")
    (root/"sets/broken.png").write_bytes(b"no image")
    names, looks = evaluation_looks(root/"sets")
    assert len(names) == len(looks) == 1, "what cannot be read cannot be an examination"
    g = guard(candidates(root), root, ["sets"], [])
    assert g.reason.eq("").all() and g.likeness.max() < .9 and g.like.str.endswith("a.png").all()

def test_a_set_that_lies_elsewhere_and_is_linked_is_looked_at(tmp_path):
    root = make(tmp_path/"run", 16)
    (root/"sets").mkdir(); (root/"sets/linked").symlink_to(root/"patches")
    assert guard(candidates(root), root, ["sets"], []).reason.eq("evaluation image").all()

def test_a_guard_that_is_not_there_is_no_guard(root, tmp_path):
    with pytest.raises(PathgenError, match="no_such_set is missing"): run(root, evaluation_images=["no_such_set"])
    with pytest.raises(PathgenError, match="slides.parquet is missing"): run(root, evaluation_slides=["mil/slides.parquet"])
    (root/"sets").mkdir(); (root/"sets/a.png").write_bytes(b"no image")
    with pytest.raises(PathgenError, match="sets holds no image that can be read .*: correct instruct.evaluation_images"): run(root, evaluation_images=["sets"])
    (tmp_path/"x.h5").write_bytes(b"cut short")
    with pytest.raises(PathgenError, match="x.h5 cannot be read"): evaluation_looks(tmp_path)

def test_everything_leaked(tmp_path):
    root = make(tmp_path, 16)
    with pytest.raises(PathgenError, match="all 14 patches are in an evaluation set, such as s0_0_0 in .*patches"): run(root, evaluation_images=["patches"])

# Providers that do not do as they are told

def plain(root):
    "The root with one description on all patches, which says nothing on what `GOOD` asks."
    text = "The field shows solid sheets of cells. The cells have uniform nuclei. There is no nuclear pleomorphism. The appearance favours a benign process."
    write_table(read_table(root/"text/revisions.parquet").assign(text=text), root/"text/revisions.parquet")
    return root

GOOD = dict(question="Which of these elements is seen in this field?", options=["glands","fat","bone","nerves"], answer="glands", explanation="Glands are seen.")

def every(n, good, bad):
    "A rule that answers wrongly on every n-th description."
    count = iter(range(10**6))
    return lambda **kw: bad if next(count)%n == 0 else good(**kw)

def test_prose_is_counted_and_left_out(tmp_path, monkeypatch):
    root = make(tmp_path)
    monkeypatch.setitem(chat.RULES, "choice", every(14, choice_by_rule, "I would ask about the glands."))
    r = run(root)
    assert r["metrics"]["failed"] == 2 and r["rejected"].query("reason == 'no good answer'").error.str.contains("no JSON object").all()

def test_too_much_prose_ends_the_stage(tmp_path, monkeypatch):
    monkeypatch.setitem(chat.RULES, "dialogue", lambda **kw: "Let us talk about glands.")
    with pytest.raises(PathgenError, match="28 of 28 images have no good answer, such as s.*no JSON object"): run(make(tmp_path))

@pytest.mark.parametrize("reason,change", {"names_its_source":dict(explanation="As described, there are glands."), "gives_itself_away":dict(question="Are glands glands?"),
    "options_alike":dict(options=["glands","fat","the fat","nerves"]), "two_right_options":dict(options=["glands","uniform nuclei","bone","nerves"]),
    "contradicts":dict(answer="nuclear pleomorphism", options=["nuclear pleomorphism","fat","bone","nerves"]),
    "explanation_contradicts":dict(explanation="Glands with nuclear pleomorphism are seen.")}.items())
def test_a_bad_question_goes_by_itself(tmp_path, monkeypatch, reason, change):
    root = plain(make(tmp_path))
    names = iter(range(10**6))
    other = lambda: GOOD | dict(options=["glands", *(f"finding{next(names)}" for _ in range(3))])
    monkeypatch.setitem(chat.RULES, "choice", lambda **kw: dict(questions=[other(), GOOD | change]))
    monkeypatch.setattr("pathgen.instruct.guess_by_words", lambda df: (np.zeros(len(df)), np.zeros(len(df), bool)))
    r = run(root)
    assert r["metrics"][f"rejected_{reason}"] == 28 and r["metrics"]["choice_rounds"] == 28

def test_the_same_question_twice(tmp_path, monkeypatch):
    root = plain(make(tmp_path))
    monkeypatch.setitem(chat.RULES, "choice", lambda **kw: dict(questions=[GOOD, GOOD | dict(options=["nerves","glands","fat","bone"], question=GOOD["question"].upper())]))
    monkeypatch.setattr("pathgen.instruct.guess_by_words", lambda df: (np.zeros(len(df)), np.zeros(len(df), bool)))
    assert run(root)["metrics"]["rejected_asked_before"] == 28

def test_a_dialogue_needs_two_questions(tmp_path, monkeypatch):
    root, count = plain(make(tmp_path)), iter(range(10**6))
    good = [dict(question="Which pattern is seen at low power?", answer="Solid sheets of cells are seen in the field."), dict(question="How do the nuclei look?", answer="The cells of this field have uniform nuclei.")]
    bad = dict(question="What else is seen in the nuclei?", answer="There is nuclear pleomorphism in the cells.")
    monkeypatch.setitem(chat.RULES, "dialogue", lambda **kw: dict(questions=[*good[:1+next(count)%2], bad]))
    monkeypatch.setitem(chat.RULES, "choice", lambda **kw: dict(questions=[GOOD]))
    monkeypatch.setattr("pathgen.instruct.guess_by_words", lambda df: (np.zeros(len(df)), np.zeros(len(df), bool)))
    m = run(root)["metrics"]
    assert (m["rejected_contradicts"], m["rejected_too_few_left"], m["dialogue_rounds"], m["dialogue_images"])==(28, 14, 28, 14)

# The blind reader

def test_a_giveaway_is_found(tmp_path, monkeypatch):
    def leaky(description, **kw):
        word = lambda q: " ".join(["cartilage"]*len(q["answer"].split()))
        return dict(questions=[dict(q, options=[word(q) if o == q["answer"] else o for o in q["options"]], answer=word(q)) for q in choice_by_rule(description, **kw)["questions"][:1]])
    root = make(tmp_path)
    monkeypatch.setitem(chat.RULES, "choice", leaky)
    r = run(root)
    assert r["metrics"]["blind_before"] > .95 and r["metrics"]["choice_rounds"] < 3 and r["rejected"].reason.eq("answered blind").sum() > 20

def test_fair_questions_stay(made): assert made["metrics"]["blind_before"] < .45 and made["metrics"]["blind_dropped"] < .15*made["metrics"]["choice_rounds"]

def test_it_judges_patients_it_has_not_seen():
    g = np.random.default_rng(0)
    rows = [dict(patient_id=f"p{i%4}", options=[f"w{j}" for j in g.choice(40, 4, replace=False)]) for i in range(80)]
    df = pd.DataFrame(rows).assign(answer=lambda d: [o[0] for o in d.options])
    other = df.copy()
    other.loc[other.patient_id == "p0","answer"] = [o[3] for o in other.options[other.patient_id == "p0"]]
    own = (df.patient_id == "p0").to_numpy()
    assert np.allclose(blind_chances(df)[own], blind_chances(other)[own]), "what is right for a patient does not count for that patient"
    with pytest.raises(PathgenError, match="one alone"): blind_chances(df.assign(patient_id="p0"))

@pytest.mark.parametrize("rule,right,gone", [(lambda options, **kw: next(l[0] for l in options.split("\n") if "necrosis" in l), 1, 1), (lambda **kw: "B", .25, 0)])
def test_a_model_guesses_in_every_rotation(tmp_path, monkeypatch, rule, right, gone):
    monkeypatch.setitem(chat.RULES, "guess", lambda **kw: dict(letter=rule(**kw)))
    df = pd.DataFrame([dict(slide_id=f"s{i%2}", question=f"Which? {i}", options=["fat","bone","necrosis","nerves"], answer="necrosis") for i in range(6)])
    hit, drop, failed = guess_by_model(df, "builtin", tmp_path)
    assert list(hit) == [right]*6 and list(drop) == [bool(gone)]*6 and list(failed) == [0]*6

def test_tries_that_fail_are_counted(tmp_path, monkeypatch):
    root, unanswered = make(tmp_path), set()
    def guess(question, options, **kw):
        if len(options)%2: return dict(letter="A")
        unanswered.add((question, options))
        return "I cannot see the image."
    monkeypatch.setitem(chat.RULES, "guess", guess)
    r = run(root, blind="builtin", max_failed=1)
    assert r["metrics"]["blind_failed"] == len(unanswered) > 0
    with pytest.raises(PathgenError, match="instruct.blind builtin: .* tries gave no good answer, where base.max_failed allows a share of 0.1"): run(root, blind="builtin")

def test_unknown_providers_are_named(root):
    with pytest.raises(PathgenError, match="unknown provider 'gpt'"): run(root, provider="gpt")
    with pytest.raises(PathgenError, match="unknown provider 'oracle'"): run(root, blind="oracle")

def test_inputs_that_are_missing(tmp_path):
    with pytest.raises(PathgenError, match="run `pathgen run pairs` first"): run(tmp_path)
