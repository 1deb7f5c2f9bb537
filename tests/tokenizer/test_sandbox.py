"""Does a template take no more than its budget, whatever it does, and is it otherwise what Jinja makes of it?"""

import json

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moesaic.tokenizer import sandbox
from moesaic.tokenizer.sandbox import Exceeded, compiled

TALK = [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": "It is <b>7</b>.\n "}] * 3
DOUBLED = (
    "{% set n = namespace(x=(1,), y=(1,)) %}{% for i in range(28) %}{% set n.x = (n.x, n.x) %}"
    "{% set n.y = (n.y, n.y) %}{% endfor %}"
)
LONG = "{% set x = 'a' * 3000000 %}{% set y = x + '' %}{% for i in range(99999) %}"


def grown(start: str, step: str) -> str:
    """A template in which `n.x` begins as `start` and is replaced by `step` many times."""
    return f"{{% set n = namespace(x={start}) %}}{{% for i in range(9999) %}}{{% set n.x = {step} %}}{{% endfor %}}"


ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that takes no item": "{% for a in range(9) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "a loop in itself": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "items that are passed over": "{% for a in range(9) %}{{ range(99999) | select('eq', -1) | first }}{% endfor %}",
    "a long text": "{% set x = 'a' * 3000000000 %}",
    "a text that doubles": grown("'ab'", "n.x + n.x"),
    "a text that joins itself": grown("'ab'", "n.x ~ n.x"),
    "a list that doubles": grown("[1]", "n.x + n.x"),
    "a number that doubles": grown("1", "n.x + n.x"),
    "a number that grows by less": grown("1", "n.x - -n.x"),
    "a long list": "{% set x = ([1] * 99999) * 99999 %}",
    "a power": "{{ 9 ** 99999999 }}",
    "a number of many digits": "{{ ('f' * 9000000) | int(0, 16) }}",
    "a rounded number": "{{ 5 | round(-1000000000) }}",
    "a text put between letters": "{% set x = 'a' * 4000000 %}{{ x.replace('', x) }}",
    "a text put for letters": "{% set x = 'a' * 4000000 %}{{ x | replace('a', x) }}",
    "a wide joint": "{% set x = 'a' * 2000000 %}{{ range(99999) | join(x) }}",
    "a wide joint of letters": "{% set x = 'a' * 999999 %}{{ x.join(x) }}",
    "one text many times": "{% set x = 'a' * 99999 %}{{ ''.join([x] * 99999) }}",
    "a wide field": "{{ '%1000000000d' | format(1) }}",
    "a wide field by %": "{{ '%*d' % (1000000000, 1) }}",
    "a wide field by a method": "{{ '{:1000000000d}'.format(1) }}",
    "a field as wide as is said": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a field many times": "{% set x = 'a' * 999999 %}{{ ('{0}' * 9999).format(x) }}",
    "a named field many times": "{% set x = 'a' * 999999 %}{{ ('{a}' * 9999).format_map({'a': x}) }}",
    "a wide margin": "{{ ('\n' * 900000) | indent(1000000) }}",
    "a margin that is a text": "{{ ('\n' * 900000) | indent('a' * 1000000) }}",
    "wide JSON": "{{ ([1] * 99999) | tojson(indent=1000000) }}",
    "long commas": "{{ ([1] * 99999) | tojson(separators=('a' * 99999, 'b')) }}",
    "a list in itself twice, written": DOUBLED + "{{ n.x }}",
    "a list in itself twice, as JSON": DOUBLED + "{{ n.x | tojson }}",
    "a list in itself twice, compared": DOUBLED + "{{ n.x == n.y }}",
    "a list in itself twice, tested": DOUBLED + "{{ n.x is eq(n.y) }}",
    "a list in itself twice, sought": DOUBLED + "{{ n.x in [n.y] }}",
    "a list in itself twice, as a key": DOUBLED + "{{ {n.x: 1} }}",
    "a list in itself twice, as an index": DOUBLED + "{{ {}[n.x] }}",
    "a list in itself twice, asked for": DOUBLED + "{{ {}.get(n.x) }}",
    "texts compared": LONG + "{% if x == y %}{% endif %}{% endfor %}",
    "a letter sought": LONG + "{% if 'b' in x %}{% endif %}{% endfor %}",
    "a text cut": LONG + "{% set z = x[1:] %}{% endfor %}",
    "a text raised": LONG + "{% set z = x.upper() %}{% endfor %}",
    "a text stripped": LONG + "{% set z = x | trim %}{% endfor %}",
    "a text caught": "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
    "a long body": "{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}",
    "another way of writing": "{% autoescape true %}{{ '<' * 9999999 }}{% endautoescape %}",
    "another file": "{% include '/etc/passwd' %}",
}
SAME = """{%- macro shout(text, mark='!') -%}{{ text | upper }}{{ mark }}{{ caller() if caller }}{%- endmacro -%}
{%- set ns = namespace(last=-1, many=[]) -%}
{%- for message in messages[::-1] -%}
  {%- if ns.last < 0 and message.role == 'user'
    and message.content is string and not(message.content.startswith('<')) -%}
    {%- set ns.last = (messages | length - 1) - loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- for message in messages if message['role'] in ['user', 'assistant'] -%}
  {{- '<|' + message.role + '|>' ~ loop.index ~ (loop.index0 % 2) ~ (loop.last and add_generation_prompt) -}}
  {%- set ns.many = ns.many + [message.content.split(' ')[-1].rstrip('\n').lstrip('<')] -%}
  {%- if '</b>' in message.content -%}{{ message.content.split('</b>')[0].split('<b>')[-1] }}{%- else -%}
    {{- message.content | trim | replace('What', 'that') -}}{%- endif -%}
  {{- message | tojson -}}{{ message.items() | list }}
{%- endfor -%}
{{ ns.last }}{{ ns.many | join(', ') }}{{ ns.many[1:3] }}{{ shout('a') }}
{{ 7 // 2 * 2.5 - 1 / 3 + 2 ** 5 }}{{ 'é' * 3 }}
{% call shout('b', mark='?') %}{% filter title %}called {{ 'it' }}{% endfilter %}{% endcall %}
{{ messages | map(attribute='role') | unique | list }}
{{ messages | selectattr('role', 'equalto', 'user') | list | count }}
{{ '%s of %05.1f' | format('a', 2.5) }}{{ '{} {x:>4}'.format(1, x=2) }}{{ '%d%%' % 3 }}
{{ {'b': 1, 'a': [2, none]} | dictsort }}
{{ nothing }}{{ nothing is defined }}{{ nothing | default('none') }}{{ messages[0].nothing is undefined }}
{{ none }}{{ true }}
{{ ('<a>' | safe) + '<b>' }}{{ '<a>' | e }}{{ {'a': 1} | tojson(indent=2) }}{{ 'a\nb' | indent(4, first=true) }}
{{ dict(a=1) }}
{% for key, value in {'a': 1}.items() %}{{ key }}{{ value }}{% if loop.first %}{% break %}{% endif %}{% endfor %}
{{ 'b' < 'c' }}
{% for c in 'abc' %}{{ c }}{{ loop.cycle('x', 'y') }}{{ loop.length }}{{ loop.nextitem }}{% else %}none{% endfor %}
"""


def rendered(source: str) -> str:
    return compiled(source, "{}".format).render(messages=TALK, add_generation_prompt=True)


@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_has_no_end_is_ended(source, monkeypatch):
    monkeypatch.setattr(sandbox, "BUDGET", 1 << 18)
    with pytest.raises(Exceeded, match="it takes more than|it makes|it formats|it asks for|may run without end"):
        rendered(source)


def test_other_templates_are_what_jinja_makes_of_them():
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    expected = plain.from_string(SAME).render(messages=TALK, add_generation_prompt=True)
    assert rendered(SAME) == expected and len(expected) > 500


@pytest.mark.parametrize("name", ["to_bytes", "bit_length", "from_bytes", "real"])
def test_a_number_has_no_attributes(name):
    with pytest.raises(Exception, match=f"attribute '{name}' of 'int' object is unsafe"):
        rendered("{{ (3)." + name + "() }}")


@pytest.mark.parametrize("name", ["center", "ljust", "zfill", "expandtabs", "translate", "encode", "maketrans"])
def test_a_text_has_no_method_that_can_widen_it(name):
    with pytest.raises(Exception, match=f"attribute '{name}' of 'str' object is unsafe"):
        rendered("{{ 'a'." + name + "(1) }}")


def test_a_namespace_that_holds_itself_is_written_as_its_name():
    assert rendered("{% set n = namespace() %}{% set n.n = n %}{{ n }}") == "<namespace>"
