"PathMMU: nothing is dropped in silence, answers are read as they are meant, likelihoods do not depend on the batch, luck and position do not count."
import json
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from conftest import ROOT
from test_endpoint import server, text
from pathgen import lmm as L, pathmmu
from pathgen.clip import build_clip, save_clip
from pathgen.chat import by_letter, put_choice
from pathgen.core import PathgenError, read_json
from pathgen.lmm import encode, tail_scores
from pathgen.pathmmu import *

COLOURS = dict(red=(200,40,60), green=(40,160,80), blue=(50,70,200))
QUESTION = "Which colour is this?"

def quiz(n, folder=None, start=0, subset="PubMed"):
    rows = []
    for k in range(start, start+n):
        c, names = list(COLOURS)[k%3], [*COLOURS, "none of these"]
        names = names[k%4:]+names[:k%4]
        lettered = [f"{l}) {o}" for l,o in zip("ABCD", names)]
        if folder: Image.new("RGB", (60,60), tuple(np.array(COLOURS[c])+k%7)).save(folder/f"images/{subset}{k}.png")
        rows.append(dict(No=k, img=f"{subset}{k}.png", question=QUESTION, options=lettered, answer=lettered[names.index(c)]))
    return rows

def write_set(folder, n=12, **changes):
    (folder/"images").mkdir(parents=True, exist_ok=True)
    d = {s:dict(val=quiz(4, folder, 0, s), test_tiny=quiz(6, folder, 4, s), test=quiz(n, folder, 10, s)) for s in ("PubMed","Atlas")}
    for k,v in changes.items(): d["PubMed"]["test"][int(k[1:])].update(v)
    (folder/"data.json").write_text(json.dumps(d))
    return folder

@pytest.fixture
def room(tmp_path): return write_set(tmp_path/"set")

@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    "A LLaVA that knows the colours: it says the word to the bare question."
    d = tmp_path_factory.mktemp("taught")
    tok = L.make_tokenizer([put_choice(QUESTION, [*COLOURS, "none of these"]), "A B C D"]*3)
    llm = L.build_llm(tok, 1, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    m = L.build_lmm(build_clip(seed=2, device="cpu"), llm, tok)
    seen = np.stack([np.full((112,112,3), c, np.uint8) for c in COLOURS.values()])
    rows = [dict(prompt=QUESTION, answer=list(COLOURS)[k%3], image=k%3) for k in range(96)]
    L.train_lmm(m, L.Talks(m, rows, seen), d/"points", L.BOTH, epochs=3, batch=8, lr=4e-3)
    return L.load_lmm(L.save_lmm(m, d/"llava"), "cpu")

def test_the_real_socialpath_is_read_to_the_last_question(real):
    df = read_pathmmu(real/"captions/pathmmu_socialpath_mapping.json")
    assert df.split.value_counts().to_dict()==dict(val=155, test=1620, test_tiny=235) and set(df.subset)=={"SocialPath"} and df.id.is_unique
    assert (df.options.str.len()==3).sum()==6 and (df.options.str.len()==4).sum()==2004
    assert df.matched.value_counts().to_dict()==dict(exact=2005, letter=5) and (df.right >= 0).all() and not df.repeated.any()
    odd = df[df.matched=="letter"].iloc[0]
    assert odd.options[odd.right]=="SMA (Smooth Muscle Actin) and Desmin"
    c = census(df).set_index(["subset","part"])
    assert c.loc[("SocialPath","all"), "questions"]==1855 and c.loc[("SocialPath","all"), "with_image"]==0, "Table 4 says 1855"

def test_the_nesting_of_the_real_file_is_read(real):
    df = read_pathmmu(real/"captions/pathmmu_hf_data.json")
    assert list(df.subset.unique())==["Atlas"] and len(df)==7 and (df.matched=="exact").all()

def test_the_stand_in_is_read_by_the_same_loader(tmp_path):
    from pathgen.standins import run_standins
    run_standins(str(tmp_path), 0, 1, 0.0, ["osteo"], 1, 1, 1, 2, 2, 11)
    df = read_pathmmu(tmp_path/"standins/pathmmu")
    assert df.attrs["standin"] and list(df.subset.unique())==list(SUBSETS) and (df.right >= 0).all()
    assert set(df.matched)=={"exact","letter"} and set(df.options.str.len()) >= {3,4} and len(df)==5*15

@pytest.mark.parametrize("content, says", [("[]", "no file of PathMMU"), ("{", "is not JSON"), ("{}", "holds no question"), ('{"Atlas": {"train": []}}', "has a part 'train'"),
    ('{"Atlas": []}', "has a part"), ('{"val": []}', "does not say which"), ('{"Atlas": {"val": [{"question": "Q", "options": ["A) x"]}]}}', "question 0 of Atlas val"),
    ('{"Atlas": {"val": [{"question": "", "options": ["A) x", "B) y"]}]}}', "question 0 of Atlas val")])
def test_a_file_that_is_none_ends_in_one_line(tmp_path, content, says):
    (tmp_path/"data.json").write_text(content)
    with pytest.raises(PathgenError, match=says) as e: read_pathmmu(tmp_path)
    assert "\n" not in str(e.value) and "data.json" in str(e.value)
    with pytest.raises(PathgenError, match="is missing"): read_pathmmu(tmp_path/"nowhere")

def test_odd_questions_stay_and_are_counted(tmp_path):
    f = write_set(tmp_path/"s", q0=dict(answer="E) yellow"), q1=dict(img="gone.png"), q2=dict(img=""), q3=dict(quiz(1, start=14)[0]), q5=dict(answer="Blue"))
    df = read_pathmmu(f)
    assert len(df)==44 and df.id.is_unique and df.repeated.sum()==1 and df[df.path==""].id.tolist()==["PubMed-test-11", "PubMed-test-12"]
    assert df[df.right < 0].id.tolist()==["PubMed-test-10"] and (df.matched=="text").sum()==1
    c = census(df).set_index(["subset","part"]).loc[("PubMed","all")]
    assert (c.questions, c.with_image, c.images_named, c.images, c.right_by_none, c.repeated)==(18, 16, 16, 15, 1, 1)

def test_a_question_without_a_number_keeps_its_id(tmp_path):
    f = write_set(tmp_path/"s")
    d = json.loads((f/"data.json").read_text())
    for q in d["Atlas"]["val"]: q.pop("No")
    (f/"data.json").write_text(json.dumps(d))
    a = read_pathmmu(f)
    d["Atlas"]["val"].reverse()
    (f/"data.json").write_text(json.dumps(d))
    assert set(a.id)==set(read_pathmmu(f).id) and a.id.is_unique

@pytest.mark.parametrize("said, k, way", [("C", 2, "letter"), ("c", 2, "letter"), ("(B) Fat", 1, "letter"), ("B: fat, of course", 1, "letter"), ("The correct answer is (D).", 3, "letter"),
    ("Answer: A because of ghosts", 0, "letter"), ("Smooth muscle.", 3, "option"), ("It shows SMOOTH   muscle bundles", 3, "option"), ("A field of fat", 1, "option"),
    ("Coagulative necrosis", 2, "option"), ("Necrosis", 0, "option"), ("Fat and smooth muscle", -1, "none"), ("", -1, "none"), ("H", -1, "none"), ("I cannot help with medical images.", -1, "none")])
def test_answers_are_read_as_they_are_meant(said, k, way):
    assert read_answer(said, ["Necrosis", "Fat", "Coagulative necrosis", "Smooth muscle"])==(k, way)

@pytest.mark.parametrize("said, k", [("There is no necrosis.", -1), ("Not fat", -1), ("A field without any smooth muscle", -1), ("Absence of necrosis is noted.", -1), ("No evidence of coagulative necrosis", -1),
    ("Fat is not seen.", -1), ("The tissue lacks fat", -1), ("No doubt: fat", 1), ("Fat, without doubt", 1), ("There is no fat", 4)])
def test_an_option_that_is_denied_is_not_picked(said, k):
    options = ["Necrosis", "Fat", "Coagulative necrosis", "Smooth muscle"] + ["No fat"]*(k == 4)
    assert by_option(said, options)==k

def test_likelihoods_do_not_depend_on_the_batch(taught, room):
    rows = shifted(read_pathmmu(room)[:9])
    rows["question"] = [QUESTION + " Look closely."*(k%4) for k in range(len(rows))]
    for way in ("letters","words"):
        many = likely(taught, rows, way)
        for i in (0, 7, 20): np.testing.assert_allclose(many[i], likely(taught, rows[i:i+1], way)[0], atol=1e-5)
    np.testing.assert_allclose(likely(taught, rows[:5], blind=True)[3], likely(taught, rows[3:4], blind=True)[0], atol=1e-5)

def test_likelihoods_are_those_of_transformers(taught):
    im = np.full((112,112,3), COLOURS["blue"], np.uint8)
    said = [dict(role="user", content=[dict(type="image", image=Image.fromarray(im)), dict(type="text", text=QUESTION)])]
    p = taught.processor
    for tail in ("blue", "none of these"):
        b = p.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        ids = torch.tensor([p.tokenizer(" "+tail, add_special_tokens=False)["input_ids"]])
        n, x = b["input_ids"].shape[1], torch.cat([b["input_ids"], ids], 1)
        with torch.inference_mode(): z = taught.model(input_ids=x, attention_mask=torch.ones_like(x), pixel_values=b["pixel_values"]).logits[0,n-1:-1].log_softmax(-1)
        want = z.gather(1, ids.T).mean().item()
        assert abs(tail_scores(taught, [QUESTION], [[tail]], encode(taught, [im]))[0][0]-want) < 1e-4

def test_an_image_goes_through_the_tower_once(taught, room):
    df, passes = read_pathmmu(room), []
    hook = taught.model.model.vision_tower.register_forward_hook(lambda m, i, o: passes.append(len(o.last_hidden_state)))
    likely(taught, shifted(df))
    hook.remove()
    assert sum(passes)==df.path.nunique() < len(df)*4

@pytest.mark.parametrize("way, each", dict(letters=1, words=2, contrast=4).items())
def test_a_batch_of_questions_takes_so_many_forward_passes(room, way, each):
    tok = L.make_tokenizer([put_choice(QUESTION, [*COLOURS, "none of these"]), " A B C D"]*3)
    m = L.build_lmm(build_clip(seed=2, device="cpu"), L.build_llm(tok, 1, hidden_size=64, intermediate_size=128, num_attention_heads=2), tok)
    df, passes = read_pathmmu(room), []
    rows = shifted(df, way == "letters")
    m.model.model.language_model.register_forward_hook(lambda m, i, o: passes.append(len(o.last_hidden_state)))
    likely(m, rows, way, typical=list(df.path[:4]))
    batches = sum(-(-len(b)//m.batch) for b in L.by_image(rows.path, m.batch))
    assert len(passes)==each*batches and batches <= len(rows)/m.batch+2
    if way == "letters": assert sum(passes)==len(rows), "a question once, for all its options"

def test_who_sees_is_right_and_who_does_not_guesses(taught, room):
    df = read_pathmmu(room)
    sees, blind = (judge(df, take_answers(taught, df, "words", b)) for b in (False, True))
    assert sees.hit.mean()==1 and blind.hit.mean() < .5
    assert len({o[k] for o,k in zip(blind.options, blind.pick)})==1, "without an image it says the same word to the same question"

def test_contrast_takes_off_what_words_are_worth_without_the_image(taught, room):
    df = read_pathmmu(room)
    assert judge(df, take_answers(taught, df, "contrast")).hit.mean() > .9
    with pytest.raises(PathgenError, match="part val, and none is there: put words"): take_answers(taught, df[df.split != "val"], "contrast")
    asked = models_of([f"a={taught.name}"], ["a"], ["contrast","words"], [], room)
    assert [(w["way"], w["blind"]) for w in asked] == [("contrast", False), ("words", False), ("words", True)]

def test_options_that_speak_of_each_other_keep_their_order(tmp_path):
    df = read_pathmmu(write_set(tmp_path/"s", q0=dict(options=["A) red", "B) blue", "C) Both A and B", "D) green"], answer="C) Both A and B")))
    rows = shifted(df)
    assert (rows.id=="PubMed-test-10").sum()==1 and len(rows)==4*43+1
    assert census(df).set_index(["subset","part"]).loc[("PubMed","all"), "bound"]==1

def test_a_model_that_goes_by_position_is_not_consistent(room):
    df = read_pathmmu(room)
    took = shifted(df)[["id","shift"]].assign(read="letter", said="A", complaint="")
    took["scores"], took["pick"] = [[]]*len(took), took["shift"] # always the first
    j = judge(df, took)
    assert .1 < j.hit.mean() < .5 and j.consistent.eq(0).all()

def test_what_is_asked_in_one_order_alone_has_no_consistency(taught, tmp_path):
    df = read_pathmmu(write_set(tmp_path/"s", q0=dict(options=["A) red", "B) blue", "C) Both A and B", "D) green"], answer="C) Both A and B")))
    for way in ("words","contrast"): assert judge(df, take_answers(taught, df, way)).consistent.isna().all()
    assert judge(df, take_answers(taught, df, rotations=False)).consistent.isna().all()
    j = judge(df, take_answers(taught, df))
    assert j[j.consistent.isna()].id.tolist()==["PubMed-test-10"], "its options speak of each other"
    assert summary(j, 0).consistent.notna().all()

def test_an_image_that_cannot_be_read_is_not_answered(taught, room):
    df = read_pathmmu(room)
    open(df.path[0], "w").write("no image")
    for way in ("letters","written"):
        took = take_answers(taught, df[:12], way, max_tokens=2)
        j = judge(df[:12], took)
        assert j[~j.asked].image.tolist()==[df.image[0]] and j.hit[0]==0 and len(took)==48 and (took.read=="no image").sum()==4

def test_an_answer_outside_the_options_is_never_right(taught, tmp_path):
    df = read_pathmmu(write_set(tmp_path/"s", q0=dict(answer="E) yellow")))
    j = judge(df, take_answers(taught, df, "words"))
    assert j[j.right < 0].hit.tolist()==[0] and j.hit.sum()==len(df)-1

def test_what_is_unread_under_all_shifts_is_not_consistently_right(server, tmp_path):
    df = read_pathmmu(write_set(tmp_path/"s", q0=dict(answer="E) yellow")))
    df = df[df.id.isin(["PubMed-test-10","PubMed-test-11"])]
    server.answer = lambda body: json.dumps(dict(answer="I cannot tell from this image."))
    j = judge(df, take_answers(server.provider, df, "written", chat=dict(cache=str(tmp_path/"chat"), max_requests=99, retries=0)))
    assert j.right.tolist()[0]==-1 and set(j["read"])=={"none"} and j.hit.tolist()==[0,0] and j.consistent.tolist()==[0,0]

def test_the_frequent_choice_does_not_look_at_the_test(room):
    df = read_pathmmu(room)
    other = df.assign(right=df.right.where(df.split=="val", 3-df.right))
    assert frequent_choice(df).pick.unique()==frequent_choice(other).pick.unique()
    assert random_choice(df).hit.eq(.25).all() and random_choice(df).consistent.eq(.25**4).all()

def test_an_endpoint_that_answers_prose_is_read_or_counted(server, room, tmp_path):
    df = read_pathmmu(room)[:3]
    server.answer = lambda body: json.dumps(dict(answer="The square is red, I believe."))
    chat = dict(cache=str(tmp_path/"chat"), max_requests=99, retries=1)
    took = take_answers(server.provider, df, "written", rotations=False, chat=chat)
    assert set(took.read)=={"option"} and judge(df, took).hit.tolist()==[1,0,0]
    assert summary(judge(df, took), 0)[["unread","by_letter","by_option"]].values.tolist()==[[0,0,1]]*2
    sent = [body["messages"][0]["content"] for body,_ in server.asked]
    assert len(sent)==3 and all(s[0]["type"]=="image_url" for s in sent) and sum("A) red" in s[1]["text"] for s in sent)==1
    assert take_answers(server.provider, df, "written", rotations=False, chat=chat).equals(took) and len(server.asked)==3, "asked once"
    server.answer = lambda body: "I would rather not say."
    took = take_answers(server.provider, df, "written", blind=True, rotations=False, chat=chat)
    assert set(took.read)=={"none"} and took.complaint.str.contains("no JSON").all() and len(server.asked)==9
    j = judge(df, took)
    assert j.asked.all() and j.hit.sum()==0 and summary(j, 0).unread.eq(1).all()

def test_intervals_are_by_image_and_the_same_each_time():
    h, g = np.repeat([0,1]*10, 6).astype(float), np.repeat(np.arange(20), 6)
    assert interval(h, g, 500)==interval(h, g, 500)
    wide, narrow = np.ptp(interval(h, g, 500)), np.ptp(interval(h, np.arange(120), 500))
    assert wide > 2*narrow and np.isnan(interval(h, g, 0)).all()

RUN = dict(seed=0, device="cpu", max_requests=99, folder="set", models=["llava"], blind=["llava"], ways=["contrast","words","letters"], clips=[], rotations=True, bootstrap=50, max_tokens=4, retries=0)

@pytest.fixture
def root(taught, tmp_path):
    write_set(tmp_path/"set", q1=dict(img="gone.png"))
    (tmp_path/"models").mkdir()
    (tmp_path/"models/llava").symlink_to(taught.name)
    return tmp_path

def test_the_whole_stage(root):
    r = run_pathmmu(str(root), **RUN | dict(models=["llava", "no_instruct=llava"]))
    m = read_json(root/"metrics/pathmmu.json")
    assert m["accuracy"]==1 and m["no_instruct"]==1 and m["blind"] < .5 and m["random"]==.25 and m["of_all"]==round(35/36, 4) and m["coverage"]==round(35/36, 4)
    assert {"consistent_letters","consistent_letters_no_instruct"} == {k for k in m if k.startswith("consistent")}
    assert {"unread","tiny","val","frequent","accuracy_PubMed","low","high","questions","right_by_exact","repeated","accuracy_letters"} <= set(m)
    assert (r["table"].low <= r["table"].accuracy+1e-9).all()
    kit = pd.read_csv(root/"eval/pathmmu/vlmevalkit/llava.contrast_PathMMU.tsv", sep="\t")
    assert list(kit)==["index","image_path","question","A","B","C","D","answer","category","split","prediction","hit"]
    assert len(kit)==43 and kit.hit.mean()==1 and (kit.prediction==kit.answer).all()
    whole = pd.read_csv(root/"eval/pathmmu/vlmevalkit/PathMMU.tsv", sep="\t")
    assert len(whole)==44 and whole["index"].is_unique and set(kit["index"]) < set(whole["index"])
    t = table4(r["table"], ROOT/"data/paper/table4_pathmmu.csv", True)
    assert t.loc["PathGen-LLaVA", ("overall","all")]==58.4 and any("stand-in" in i for i in t.index)

def test_the_gap_is_told_for_the_same_way_on_both_sides(root):
    r = run_pathmmu(str(root), **RUN | dict(blind=["llava", "deaf=llava"], ways=["contrast","words"]))
    g, m = r["gaps"], r["metrics"]
    assert [tuple(t) for t in g[["way","label","same_way"]].values]==[(w, l, w=="words") for w in ("contrast","words") for l in ("llava","deaf")]
    x, y = (r["judged"][k] for k in ("llava.words","llava.words.blind"))
    on = x.asked & (x.split!="val")
    assert g.questions.eq(35).all() and on.sum()==35, "the question without an image counts on neither side"
    assert m["accuracy_words"]==1 and m["gap_words"]==m["gap_words_deaf"]==1-y.hit[on].mean()
    assert m["accuracy_words_blind"]==y.hit[on].mean() and "gap_contrast" not in m
    assert (g.low <= g.gap).all() and (g.gap <= g.high).all() and len(run_pathmmu(str(root), **RUN | dict(blind=[]))["gaps"])==0

def test_the_gap_to_others_that_see_is_told_as_well(root, taught):
    deaf = root/"models/other"
    m = L.load_lmm(taught.name, "cpu")
    with torch.no_grad(): m.model.model.multi_modal_projector.linear_2.weight.zero_()
    L.save_lmm(m, deaf)
    r = run_pathmmu(str(root), **RUN | dict(models=["llava","other"], blind=["llava","other"]))
    g = r["gaps"].set_index(["way","label","blind"])
    assert {(w, "other", False) for w in ("contrast","words","letters")} <= set(g.index) and ("words","llava",False) not in g.index
    x, y = (r["judged"][k] for k in ("llava.words","other.words"))
    on = x.asked & (x.split!="val")
    assert r["metrics"]["gap_words_other"]==1-y.hit[on].mean() > .5 and g.loc[("words","other",False)].same_way
    z = r["judged"]["other.words.blind"]
    assert r["metrics"]["gap_words_other_blind"]==1-z.hit[on].mean() and "gap_contrast_other" in r["metrics"]
    assert (g.low <= g.gap).all() and (g.gap <= g.high).all()

def test_one_model_alone_may_be_asked_to_write(root):
    r = run_pathmmu(str(root), **RUN | dict(models=["llava","no_instruct=llava"], ways=["words","llava=written"]))
    assert set(r["took"])=={"llava.words","llava.written","llava.words.blind","llava.written.blind","no_instruct.words"}
    m, z = r["metrics"], r["judged"]["llava.written"]
    z = z[z.asked & z.split.isin(PARTS["all"])]
    assert abs(m["unread_written"]+m["by_letter_written"]+m["by_option_written"]-1) < 1e-9 and m["by_option_written"]==(z["read"]=="option").mean()
    assert m["unread"]==0 and "accuracy_written" in m and m["accuracy"]==1
    with pytest.raises(PathgenError, match="pathmmu.ways has none for other"): run_pathmmu(str(root), **RUN | dict(models=["llava","other=llava"], ways=["llava=written"]))
    with pytest.raises(PathgenError, match="names the model other, which is not asked: choose from llava"): run_pathmmu(str(root), **RUN | dict(ways=["words","other=written"]))

def idefics(folder):
    "A tiny model with random weights that sees and is no LLaVA."
    from tokenizers import AddedToken
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor
    tok = L.make_tokenizer([put_choice(QUESTION, [*COLOURS, "none of these"])]*3)
    tok.add_special_tokens(dict(additional_special_tokens=["<image>","<fake_token_around_image>","<global-img>","<end_of_utterance>"]))
    look = Idefics3ImageProcessor(size=dict(longest_edge=28), max_image_size=dict(longest_edge=28), do_image_splitting=False)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=len(tok), pad_token_id=tok.pad_token_id, bos_token_id=1, eos_token_id=2)
    c = Idefics3Config(vision_config=vision, text_config=text | dict(model_type="llama"), image_token_id=tok.convert_tokens_to_ids("<image>"), scale_factor=1, pad_token_id=tok.pad_token_id)
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(c).save_pretrained(folder)
    Idefics3Processor(look, tok, image_seq_len=4, chat_template=L.TEMPLATE).save_pretrained(folder)
    return folder

def test_a_model_that_is_no_llava_writes_beside_ours(root):
    name = str(idefics(root/"models/idefics"))
    r = run_pathmmu(str(root), **RUN | dict(models=["llava", f"other=hf:{name}"], blind=["llava","other"], ways=["words","letters"]))
    assert {k for k in r["took"] if k.startswith("other")}=={"other.written","other.written.blind"} and r["metrics"]["accuracy"]==1
    assert {"other (written)","other, blind (written)"} <= set(r["table"].who) and r["judged"]["other.written"].asked.sum()==43
    r = run_pathmmu(str(root), **RUN | dict(models=["llava", f"other={name}"], blind=[], ways=["words"]))
    assert {"llava","other (written)"} <= set(r["table"].who), "the way is named where it is not that of the run"
    with pytest.raises(PathgenError, match="likelihoods are had from a LLaVA, not from idefics3: ask it the way written"): likely(L.load_lmm(name, "cpu"), shifted(r["df"][:1]))

def test_a_clip_takes_the_nearest_option_of_any_order(root, tmp_path):
    clip = build_clip(seed=2, device="cpu")
    save_clip(clip, tmp_path/"models/clip", "random")
    r = run_pathmmu(str(root), **RUN | dict(clips=["eye=clip"]))
    took = r["took"]["eye.nearest"]
    assert took["shift"].eq(0).all() and "eye" in r["metrics"] and "eye (nearest)" in set(r["table"].who)
    df = r["df"].set_index("id")
    for t in took.iloc[:6].itertuples():
        im = Image.open(df.path[t.id]).convert("RGB")
        assert t.pick==(clip.encode_texts(df.options[t.id])@clip.encode_images([im])[0]).argmax()

def test_a_second_run_asks_nobody(root, monkeypatch):
    run_pathmmu(str(root), **RUN)
    before = {p: p.read_bytes() for p in (root/"eval").rglob("*") if p.is_file()}
    monkeypatch.setattr(pathmmu, "take_answers", None)
    run_pathmmu(str(root), **RUN)
    assert {p: p.read_bytes() for p in before}==before

def test_a_model_may_be_asked_without_images_alone(root):
    from pathgen.pathmmu import models_of
    who = models_of(["llava"], ["llava", "words=llava"], ["letters"], [], root)
    assert [(w["label"], w["blind"]) for w in who] == [("llava", False), ("llava", True), ("words", True)]
    m = run_pathmmu(str(root), **RUN | dict(blind=["words=llava"], ways=["letters"]))["metrics"]
    assert "blind_words" in m and "words" not in m and "blind" not in m

@pytest.mark.parametrize("change, says", [(dict(models=["gone"], blind=[]), "run `pathgen run gone` first"), (dict(ways=["loud"]), "pathmmu.ways names loud"), (dict(blind=["other"]), "run `pathgen run other` first"),
    (dict(models=["m=hf:/no/such"], blind=[]), "hf:/no/such is no model that can be asked: correct it in pathmmu.models"), (dict(models=[]), "pathmmu.models or pathmmu.ways is empty"), (dict(folder="nowhere"), "nowhere is missing")])
def test_wrong_parameters_end_in_one_line(root, change, says):
    with pytest.raises(PathgenError, match=says) as e: run_pathmmu(str(root), **RUN | (dict(blind=[]) if change.get("models")==[] else {}) | change)
    assert "\n" not in str(e.value)

def test_no_image_at_all_is_said(root):
    for p in (root/"set/images").iterdir(): p.unlink()
    with pytest.raises(PathgenError, match="none of its images lies in the folder images beside it"): run_pathmmu(str(root), **RUN)

def test_a_model_without_eyes_answers_blind_alone(tmp_path):
    tok = L.make_tokenizer([put_choice(QUESTION, [*COLOURS])]*3)
    m = L.Lmm(L.build_llm(tok, 1, hidden_size=64, intermediate_size=128, num_attention_heads=2).eval(), tok, "deaf", "-")
    df = read_pathmmu(write_set(tmp_path/"s"))
    assert judge(df, take_answers(m, df, "letters", blind=True)).asked.all()
    with pytest.raises(PathgenError, match="without eyes"): take_answers(m, df, "letters")
