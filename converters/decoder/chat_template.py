"""BiMediX2's prompt as a Jinja template, for other programs that read our GGUF; this package never renders it.

Meta's own template, which a tokenizer_config.json may carry, adds a date and "Cutting Knowledge" lines that BiMediX2
was not trained with. An image is written `<image>` here, as in the authors' data; other programs replace their own
marker.
"""

from __future__ import annotations

from bimedix_edge.prompt import END_HEADER, END_OF_TURN, START_HEADER

__all__ = ["chat_template"]

_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}"
    "{% set system = %SYSTEM% %}{% set turns = messages %}"
    "{% endif %}"
    "{{ '%START%system%END%\\n\\n' + system + '%EOT%' }}"
    "{% for message in turns %}"
    "{{ '%START%' + message['role'] + '%END%\\n\\n' + message['content'] + '%EOT%' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '%START%assistant%END%\\n\\n' }}{% endif %}"
)


def chat_template(system: str) -> str:
    """Return the template with this system sentence as its default."""
    quoted = '"' + system.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    template = _TEMPLATE.replace("%START%", START_HEADER).replace("%END%", END_HEADER).replace("%EOT%", END_OF_TURN)
    return template.replace("%SYSTEM%", quoted)
