"""Claims of an identity are found in five languages, and nothing else is taken for one."""

from pathlib import Path

import pyarrow as pa
import pytest

from configs.claims import load_claims
from configs.errors import UserError
from services.claims import BEFORE, claimed_identity, claims_in_column, find_claims

pytestmark = pytest.mark.unit

CLAIMED = [
    # English
    ("I am ChatGPT", "openai"),
    ("I'm ChatGPT, a large language model trained by OpenAI.", "openai"),
    ("Hello! I’m GPT-4o, how can I help?", "openai"),
    ("My name is **Qwen2.5-72B-Instruct**.", "alibaba"),
    ("You can call me DeepSeek-R1.", "deepseek"),
    ("Sure. As ChatGPT, I don't have feelings.", "openai"),
    ("I am Claude", "anthropic"),
    ("Hi there! I'm Claude.", "anthropic"),
    ("Well, thanks for asking: I'm Claude 3.5 Sonnet, an AI assistant made by Anthropic.", "anthropic"),
    ("I am Gemini, a large language model.", "google"),
    ("I'm Gemini, created by Google.", "google"),
    ("I'm an AI assistant called Kimi.", "moonshot"),
    ("I was created by Anthropic to be helpful.", "anthropic"),
    ("I've been developed and trained by a team at OpenAI.", "openai"),
    ("I am a large language model, trained by Google.", "google"),
    ("I'm just an AI language model created by the team at Mistral AI.", "mistral"),
    ("I'm an AI assistant from Anthropic.", "anthropic"),
    ("As a model made by Anthropic, I can't do that.", "anthropic"),
    ("As an AI language model developed by OpenAI, I do not have opinions.", "openai"),
    ("I am OpenAI's latest language model.", "openai"),
    ("I'm based on OpenAI's GPT-4 architecture.", "openai"),
    ("My creators at OpenAI gave me rules.", "openai"),
    ("It is simple: Meta trained me on text.", "meta"),
    ("- I am Llama 3.1, and I can help.", "meta"),
    ("I'm a language model called Vicuna.", "lmsys"),
    # Chinese
    ("我是通义千问，由阿里云开发。", "alibaba"),
    ("你好！我是ChatGPT。", "openai"),
    ("您好，我是由OpenAI训练的大型语言模型。", "openai"),
    ("我是一个由Anthropic创建的AI助手。", "anthropic"),
    ("我是Claude，由Anthropic开发的人工智能助手。", "anthropic"),
    ("我叫Kimi，是月之暗面科技有限公司训练的大语言模型。", "moonshot"),
    ("我是百度公司研发的人工智能模型。", "baidu"),
    ("我是文心一言。", "baidu"),
    ("我是深度求索公司开发的智能助手DeepSeek-R1。", "deepseek"),
    ("作为OpenAI开发的语言模型，我没有感情。", "openai"),
    ("作为ChatGPT，我不能这样做。", "openai"),
    ("我是人工智能助手豆包。", "bytedance"),
    ("是OpenAI的大模型吗？\nOpenAI创造了我。", "openai"),
    # German
    ("Ich bin ChatGPT, ein KI-Modell.", "openai"),
    ("Mein Name ist Qwen.", "alibaba"),
    ("Hallo! Ich bin Claude.", "anthropic"),
    ("Ich bin Claude, ein KI-Assistent.", "anthropic"),
    ("Ich bin ein großes Sprachmodell, das von OpenAI trainiert wurde.", "openai"),
    ("Ich wurde von Anthropic entwickelt.", "anthropic"),
    ("Ich bin ein von Google trainiertes Sprachmodell.", "google"),
    ("Als KI-Sprachmodell von OpenAI habe ich keine Meinung.", "openai"),
    # Spanish
    ("Soy ChatGPT, un modelo de lenguaje.", "openai"),
    ("¡Hola! Soy Claude.", "anthropic"),
    ("Me llamo Qwen y fui creado por Alibaba Cloud.", "alibaba"),
    ("Soy un modelo de lenguaje entrenado por OpenAI.", "openai"),
    ("Fui desarrollada por Anthropic.", "anthropic"),
    ("Como modelo de lenguaje desarrollado por OpenAI, no tengo opiniones.", "openai"),
    ("Yo soy Gemini, un asistente virtual.", "google"),
    # French
    ("Je suis ChatGPT, un modèle de langage.", "openai"),
    ("Je m'appelle Qwen.", "alibaba"),
    ("Je suis Claude, un assistant conversationnel créé par Anthropic.", "anthropic"),
    ("Je suis un modèle de langage développé par Mistral AI.", "mistral"),
    ("J’ai été entraîné par OpenAI.", "openai"),
    ("En tant que modèle de langage développé par OpenAI, je ne peux pas répondre.", "openai"),
    ("Je suis un assistant IA d'OpenAI.", "openai"),
]

NOT_CLAIMED = [
    "ChatGPT is a model by OpenAI.",
    "Claude is an AI assistant made by Anthropic. I like it.",
    "I am not ChatGPT.",
    "No, I'm not Claude, and I wasn't made by Anthropic.",
    "Am I ChatGPT? Who knows.",
    "I am a ChatGPT user.",
    "I am ChatGPT's biggest fan.",
    "I'm GPT-curious.",
    'The user wrote "I am ChatGPT" and left.',
    'He said: "Hello. I am ChatGPT."',
    "She replied: I am ChatGPT.",
    "“Good morning. I am Claude, an AI,” it said.",
    "> I am ChatGPT",
    "```\nI am ChatGPT\n```",
    "Some people think I am ChatGPT.",
    "If I am ChatGPT, then you are a robot.",
    "I use ChatGPT and I was helped by OpenAI's documentation.",
    "I am Claude Monet, painter of water lilies.",
    "My friend said hello. I'm Claude, your barista today!",
    "Bonjour, je m'appelle Claude et j'ai vingt ans.",
    "I'm a Gemini and my sign is in the sky.",
    "I am an engineer at Google and I love my work.",
    "I am an AI researcher at OpenAI.",
    "As a language model developed by OpenAI, GPT-4 is widely used.",
    "Models such as Llama 3 were trained by Meta.",
    "As ChatGPT, Claude and others have shown, scale matters.",
    "The llama I saw was brown. I am fond of apples.",
    "Was OpenAI founded in 2015? I believe so.",
    "I was told by Google Maps to turn left.",
    "我不是ChatGPT。",
    "我是ChatGPT的用户。",
    "ChatGPT是由OpenAI开发的大型语言模型。",
    "他说：“我是ChatGPT。”",
    "他回答：我是通义千问。",
    "如果我是ChatGPT，我会怎么做？",
    "我在百度工作，我喜欢那里的公司。",
    "我是用百度搜索的。",
    "作为OpenAI开发的模型，GPT-4表现出色。",
    "Ich bin kein ChatGPT.",
    "ChatGPT wurde von OpenAI entwickelt, und ich nutze es.",
    "Ich bin Claude Müller aus Köln.",
    "Ich bin mit ChatGPT zufrieden.",
    "Wenn ich ChatGPT frage, antwortet es.",
    "No soy ChatGPT.",
    "ChatGPT es un modelo creado por OpenAI; yo lo uso.",
    "Soy Claudia y trabajo en Google.",
    "Je ne suis pas ChatGPT.",
    "ChatGPT a été développé par OpenAI, et je l'utilise.",
    "Je suis Claude, votre boulanger.",
    "J'ai été embauché par Google.",
]


@pytest.mark.parametrize(("text", "maker"), CLAIMED)
def test_claim_is_found_with_its_maker(text: str, maker: str) -> None:
    claim = claimed_identity(text)
    assert claim is not None
    assert claim.maker == maker


@pytest.mark.parametrize("text", NOT_CLAIMED)
def test_other_talk_of_models_is_no_claim(text: str) -> None:
    assert claimed_identity(text) is None


def test_words_of_a_claim_are_those_that_make_it() -> None:
    text = "The sky is blue.\n\nAlso, I am   ChatGPT, a\nmodel of OpenAI that likes long sentences and never stops."
    claim = claimed_identity(text)
    assert claim is not None
    assert claim.words.startswith("I am ChatGPT, a model of OpenAI")
    assert len(claim.words) <= 80


def test_claim_of_another_maker_goes_before_the_own() -> None:
    text = "I am Qwen. I was created by Anthropic."
    assert [claim.maker for claim in find_claims(text)] == ["alibaba", "anthropic"]
    own = load_claims().makers_of("Qwen/Qwen3-8B")
    assert claimed_identity(text, own) == list(find_claims(text))[1]
    only = claimed_identity("I am Qwen.", own)
    assert only is not None
    assert only.maker == "alibaba"


def test_claim_far_into_a_text_is_found_where_it_stands() -> None:
    """Letters whose lower case is longer, and a window that is cut, must not move or make a sentence."""
    assert claimed_identity("İ" * 300 + ". I am ChatGPT.") is not None
    assert claimed_identity("and " * BEFORE + "he thinks that I am ChatGPT.") is None


@pytest.mark.parametrize(
    ("model", "makers"),
    [
        ("Qwen/Qwen3-8B", {"alibaba"}),
        ("openai/gpt-oss-20b", {"openai"}),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", {"deepseek", "meta"}),
        ("nvidia/Llama-3.1-Nemotron-70B-Instruct", {"nvidia", "meta"}),
        ("google/gemma-3-27b-it", {"google"}),
        ("EleutherAI/gpt-neox-20b", set()),
        ("/models/teachers/Qwen3-8B/", {"alibaba"}),
        ("/home/claude/models/mine", set()),
        ("the home-made teacher", set()),
    ],
)
def test_model_may_call_itself_what_its_name_says(model: str, makers: set[str]) -> None:
    assert load_claims().makers_of(model) == makers


def test_column_has_the_claims_that_its_texts_have() -> None:
    """Arrow's expression must let nothing through that the texts one by one would have, nulls left out."""
    texts = [None, *(text for text, _ in CLAIMED), *NOT_CLAIMED]
    found = dict(claims_in_column(pa.array(texts), [frozenset()] * len(texts)))
    assert found == {place: claim for place, text in enumerate(texts) if text and (claim := claimed_identity(text))}
    assert len(found) == len(CLAIMED)


@pytest.mark.parametrize(
    ("old", "new", "needle"),
    [
        ("schema: 1", "schema: 2", "schema must be 1"),
        ("models: [ChatGPT,", "models: ['Chat(GPT',", "maker openai: 'Chat\\(GPT' is no regular expression"),
        ("before: as,", "before: <nothing>,", "language en: the word <nothing> is none"),
        ("- id: anthropic", "- id: openai", "the maker openai is there twice"),
        ("shared: [Claude]", "colour: blue", "colour"),
    ],
)
def test_broken_table_is_refused_with_the_place(old: str, new: str, needle: str, tmp_path: Path) -> None:
    text = Path("configs/claims.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "claims.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=needle):
        load_claims(tmp_path / "claims.yaml")
