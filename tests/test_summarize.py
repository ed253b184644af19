"Summaries: the limit, the findings, bad rows, and captions of the released data set as input."
import json
import pandas as pd, pytest
from pathgen import chat
from pathgen.clip import count_tokens
from pathgen.core import PathgenError, read_json, read_table, write_table
from pathgen.findings import claims
from pathgen.morphometry import PHRASES, describe_findings
from pathgen.findings import TISSUE_SOURCES
from pathgen.summarize import LIMIT, ORGANS, SUMMARISE, kept_share, organ, run_summarize, summarise

def revisions(root, texts):
    df = pd.DataFrame(dict(patch_id=[f"s{i%2}_{i}_0" for i in range(len(texts))], slide_id=[f"s{i%2}" for i in range(len(texts))], text=texts))
    write_table(df, root/"text"/"revisions.parquet")
    return root

GOOD = "The colon tissue shows infiltrating glands. Prominent nucleoli are seen. There is no necrosis."

@pytest.fixture(scope="module")
def made():
    "Descriptions of every length: the first n concepts asserted, the others denied."
    names = sorted(PHRASES)
    return [describe_findings({c:i<n for i,c in enumerate(names[:m])}, "lung", seed=n) for m in (3,8,14,len(names)) for n in range(0, m+1, 3)]

@pytest.mark.parametrize("word", ORGANS)
def test_an_organ_goes_by_the_noun_that_slides_have(word): assert organ(f"A {word.title()} biopsy.") in TISSUE_SOURCES.values()

def test_captions_fit_and_add_nothing(made):
    for text in made:
        caption = summarise(text)["caption"]
        assert count_tokens(caption)<=LIMIT
        said, truth = claims(caption), claims(text)
        assert {c:v for c,v in said.items() if truth.get(c)!=v}=={}, f"{caption}\nfrom {text}"

def test_what_fits_is_kept(made):
    short = [t for t in made if count_tokens(t)<=LIMIT]
    kept, n = map(sum, zip(*(kept_share(t, summarise(t)["caption"]) for t in short)))
    assert short and kept>=.95*n

def test_asserted_findings_come_before_denied_ones():
    names = sorted(PHRASES)
    text = describe_findings({c:i<8 for i,c in enumerate(names)}, "lung")
    lost = {c for c,v in claims(text).items() if claims(summarise(text)["caption"]).get(c)!=v}
    assert lost and not any(claims(text)[c] for c in lost)

def test_same_text_same_caption(made): assert summarise(made[5])==summarise(made[5])

def test_what_is_a_caption_already_stays():
    text = "Lymphocytes surround  normal glands. No necrosis is seen."
    assert summarise(text)["caption"]==" ".join(text.split())

@pytest.mark.parametrize("text", ["Nothing of note", "x "*400, "A sentence. "*60, "Σ§ 組織 …"])
def test_text_without_findings_is_cut_at_a_sentence_or_word(text):
    caption = summarise(text)["caption"]
    assert caption and count_tokens(caption)<=LIMIT and " ".join(text.split()).startswith(caption)

def test_empty_description_is_named_and_not_fatal(tmp_path):
    df, texts = run_summarize("builtin", revisions(tmp_path, [GOOD]*19 + [" "]))
    assert len(df)==19 and df.text.notna().all()
    failed = read_table(tmp_path/"text"/"captions_failed.parquet")
    assert list(failed.patch_id)==["s1_19_0"] and "empty" in failed.error[0]
    assert read_json(tmp_path/"metrics"/"summarize.json")["within_77"]==1

def test_too_many_empty_descriptions_end_the_stage(tmp_path):
    with pytest.raises(PathgenError, match="2 of 4 captions failed, such as s0_2_0"):
        run_summarize("builtin", revisions(tmp_path, [GOOD, GOOD, "", ""]))

def test_missing_input_and_unknown_provider(tmp_path):
    with pytest.raises(PathgenError, match="run `pathgen run revise` first"): run_summarize("builtin", tmp_path)
    with pytest.raises(PathgenError, match="unknown provider 'gpt'"): run_summarize("gpt", revisions(tmp_path, [GOOD]))

def test_finished_slides_are_not_done_again(tmp_path, monkeypatch):
    run_summarize("builtin", revisions(tmp_path, [GOOD]*4))
    first = (tmp_path/"text"/"captions.parquet").read_bytes()
    def never(**kw): raise RuntimeError("asked again")
    monkeypatch.setattr(chat, "ask", never)
    run_summarize("builtin", tmp_path)
    assert (tmp_path/"text"/"captions.parquet").read_bytes()==first

LONG = "Glands are seen. " + "Nests of cells are seen too. "*20

@pytest.mark.parametrize("provider", ("builtin","general"))
def test_a_caption_that_stays_too_long_is_asked_again_then_cut_and_counted(monkeypatch, tmp_path, provider):
    told = []
    def says(role, prompt, inputs, attempt, complaint, **options): told.append(complaint); return json.dumps(dict(caption=LONG))
    monkeypatch.setitem(chat.RULES, "summarise", lambda description: told.append(None) or dict(caption=LONG))
    monkeypatch.setitem(chat.PROVIDERS, "general", chat.Provider("general", says, lambda role, **o: "m", local=lambda **o: True))
    df, _ = run_summarize(provider, revisions(tmp_path, [GOOD]*2))
    assert len(told)==2*3 and df.cut.all() and df.n_tokens.le(LIMIT).all() and df.text.str.endswith("too.").all() and df.text.map(LONG.startswith).all()
    assert read_json(tmp_path/"metrics"/"summarize.json")["cut"]==1
    if provider=="general": assert told[0] is None and all("at most 77 fit: write it shorter" in t for t in told[1:3])

def test_a_trained_agent_is_cut_at_once():
    value = chat.check(SUMMARISE, SUMMARISE.read(LONG))
    assert value.cut and value.caption.endswith("too.") and not chat.check(SUMMARISE, SUMMARISE.read(GOOD)).cut

@pytest.mark.parametrize("answer", (" ... ", None, "!? "*100))
def test_what_is_no_caption_is_not_mended_by_a_cut(monkeypatch, tmp_path, answer):
    monkeypatch.setitem(chat.RULES, "summarise", lambda description: dict(caption=answer))
    with pytest.raises(chat.AnswerError, match="caption: "): chat.ask(SUMMARISE, "builtin", dict(description=GOOD))
    with pytest.raises(PathgenError, match="2 of 2 captions failed"): run_summarize("builtin", revisions(tmp_path, [GOOD]*2))
    assert not (tmp_path/"text"/"captions.parquet").exists()

def test_released_captions_as_descriptions(real):
    rows = json.loads((real/"captions"/"PathGen-1.6M_sample.json").read_text())[::25]
    kept = n = 0
    for r in rows:
        caption = summarise(r["caption"])["caption"]
        assert count_tokens(caption)<=LIMIT
        a,b = kept_share(r["caption"], caption)
        kept, n = kept+a, n+b
    assert kept>=.9*n
