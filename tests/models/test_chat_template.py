"""Chat templates: what they print is what transformers makes them print, for text, parts and calls of tools."""

import pytest

from llmsys.models.text.chat_template import render

TALK = [
    {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "four"}, {"role": "user", "content": "ok "},
]  # fmt: skip
EACH = "{% for m in messages %}"
TEMPLATES = {
    "generation": EACH + "[{{ m.role }}]{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "generation, stripped": EACH + "[{{ m.role }}] {%- generation -%} {{ m.content }} {%- endgeneration -%} ."
    "{% endfor %}",
    "generation, in an if": EACH + "{% if m.role == 'assistant' %}\n{% generation %}\n<a>{{ loop.index }}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "generation is a scope": EACH + "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x is defined }}{% endfor %}",
    "tools is not none": "{% if tools is not none %}You may call{% endif %}{{ messages[0].content }}",
    "tools": "{% if tools %}You may call{% endif %}{{ tools is defined }}{{ documents is none }}",
    "documents": "{% if documents is not none %}Read{% endif %}{{ messages[0].content }}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}"
    "{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}",
    "break": EACH + "{{ m.content }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set n = namespace(x=0) %}" + EACH + "{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
    "prompt": "{% if add_generation_prompt %}<go>{% endif %}{{ bos_token }}{{ eos_token }}",
    "parts or text": EACH + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'text' %}<{{ p.text }}>{% endif %}{% endfor %}{% endif %}{% endfor %}",
}  # fmt: skip
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]


def theirs(template, messages):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (text,), _ = utils.render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=True, bos_token="<s>"
    )
    return text


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_prints_what_transformers_prints(name):
    assert render(TEMPLATES[name], TALK, {"bos_token": "<s>"}) == theirs(TEMPLATES[name], TALK)


def test_a_template_that_reads_parts_gets_them():
    template = TEMPLATES["parts or text"]
    assert render(template, PARTS, {}) == theirs(template, PARTS) == "<hel><lo>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'user: ' + messages[0].content }}",
        "user: {{ messages[0]['content'] }}",
        "user: {{ messages[0].content | trim }}",
        "user: {{ messages[0].content.strip() }}",
        "user: {% if messages[0].content is string %}{{ messages[0].content }}{% endif %}",
        "user: {{ messages[0].content | string | upper | lower }}",
    ],
)
def test_any_other_template_gets_their_text(template):
    assert render(template, PARTS, {}) == "user: hello"


@pytest.mark.parametrize(
    "template",
    [
        EACH + "{{ m.role + ':' + m.content }}{{ m.tool_calls[0].name }};{% endfor %}",
        EACH + "{{ m.role }}:{{ m.content }}{{ m.tool_calls[0].name }};{% endfor %}",
        EACH + "{{ m.role }}:{% if m.content %}{{ m.content }}{% endif %}{{ m.tool_calls[0].name }};{% endfor %}",
        EACH + "{{ m.role }}:{% if m.content is not none %}{{ m.content }}{% endif %}{{ m.tool_calls[0].name }};"
        "{% endfor %}",
    ],
)
@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}])
def test_a_call_of_a_tool_needs_no_words(template, content):
    call = {"role": "assistant", "tool_calls": [{"name": "add"}]} | content
    assert render(template, [call], {}) == "assistant:add;"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": None}, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "user"},
        {"role": "user", "content": 5}, {"role": "user", "content": {"text": "a"}}, {"role": "user", "content": b"a"},
        {"role": "user", "content": [None]}, {"role": "user", "content": ["a"]},
        {"role": "user", "content": [{"type": "image", "url": "x"}]},
        {"role": "user", "content": [{"type": "text", "text": None}]}, {"role": 1, "content": ""},
    ],
)  # fmt: skip
def test_what_is_no_message_is_named(message):
    with pytest.raises(ValueError, match=r"a message must be|messages\[1\]"):
        render("{{ messages }}", [TALK[0], message], {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}", "{{ messages[0].content + 1 }}", "{{ messages[9].content.x }}", "{{ nothing() }}",
        "{{ raise_exception('no') }}", "{% include 'x' %}", "{{ '%d' % 'x' }}", "{% generation %}", "{% for %}",
        "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ range(10**12) }}", "{{ {}['a']['b'] }}",
        "{{ messages | tojson(default=1) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ strftime_now(5) }}", "{{ messages | map(attribute=5) | list | first | nothing }}",
    ],
)  # fmt: skip
def test_whatever_a_template_raises_is_a_refusal(template):
    with pytest.raises(ValueError, match="the checkpoint's chat template refuses this conversation"):
        render(template, TALK, {})


def test_what_a_checkpoint_calls_its_tokens_does_not_stand_in_for_the_conversation():
    assert render("{{ messages[0].content }}", TALK, {"messages": "mine"}) == "2+2?"
