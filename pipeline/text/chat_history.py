"""Chats as a list of messages, in the words that the model's prompts were written in when its data was prepared.

A prepared template has place for one question. Nothing is run to write a chat: see ``pipeline.text.prompt_template``.
"""

from collections.abc import Mapping, Sequence

from pipeline.errors import ConfigError
from pipeline.text.fields import fields_of
from pipeline.text.prompt_template import PROBE, PromptTemplate
from pipeline.text.tokenizer import Encoding


def rendered(template: PromptTemplate, history: Sequence[Mapping[str, str]], origin: str) -> str:
    """Write a question as prompts were written in training; an answer that was begun stands behind it.

    Args:
        template: that the data was prepared with.
        history: messages ``{"role", "content"}``: one of the user, then perhaps one of the assistant.
        origin: folder of the data, for messages.

    Raises:
        ConfigError: the template adds nothing to a question or asks for several fields, or the history is no such chat.
    """
    fields, roles = fields_of(template.prompt), [message["role"] for message in history]
    if len(fields) > 1:
        raise ConfigError(
            f"{origin} was prepared with a template of the fields {', '.join(fields)}, which one chat message does not fill; leave "
            "--apply_chat_template out and write the prompt in the task's doc_to_text"
        )
    if not template.before and not template.after and template.prompt == f"{{{fields[0]}}}":
        raise ConfigError(
            f"{origin} was prepared without a template (prompt = '{template.prompt}', chat = False): leave --apply_chat_template "
            "out, or prepare it with jsonl.QuestionAnswers.chat = True"
        )
    if roles not in (["user"], ["user", "assistant"]):
        raise ConfigError(
            f"the prompts of {origin} have place for one message of the user, got {', '.join(roles) or 'none'}; pass "
            "--fewshot_as_multiturn false and no --system_instruction, or --num_fewshot 0"
        )
    question, *begun = (message["content"] for message in history)
    return template.filled({fields[0]: question}) + "".join(begun)


def in_chat(template: PromptTemplate, prompt: str) -> str:
    """Put a filled prompt into the chat that the model was trained in, unless it stands there already.

    >>> template = PromptTemplate("{question}", {}, before="<user>", after="<model>")
    >>> in_chat(template, "2 + 2?"), in_chat(template, "<user>2 + 2?<model>4")
    ('<user>2 + 2?<model>', '<user>2 + 2?<model>4')
    """
    before, after = template.before, template.after
    if prompt.startswith(before) and (after in prompt[len(before) :] if before else prompt.endswith(after)):
        return prompt
    return before + (prompt.strip() if template.strips else prompt) + after


def marked(template: PromptTemplate, encoding: Encoding, chat: str) -> str:
    """Mark the control tokens of a template's own words around a question; within it, and in what stands behind, they are text."""
    before, after = _around_question(template)
    if not chat.startswith(before) or after not in chat[len(before) :]:  # it was filled in other words
        before, after = template.before, template.after
    question, end, begun = chat[len(before) :].rpartition(after) if after else (chat[len(before) :], "", "")
    return encoding.marked(before) + question + encoding.marked(end) + begun


def _around_question(template: PromptTemplate) -> tuple[str, str]:
    """What a template writes before its only field and behind it."""
    fields = fields_of(template.prompt)
    before, _, after = template.prompt.format(**dict.fromkeys(fields, PROBE)).partition(PROBE)
    if len(fields) > 1 or PROBE in after:
        return template.before, template.after
    return template.before + (before.lstrip() if template.strips else before), (
        after.rstrip() if template.strips else after
    ) + template.after
