"""Several adapters, one for each part of the knowledge, and a question sent to the one that knows (CoRSA paper, B.2).

The requests are split into parts and an adapter is trained on each. At inference the base model is shown a description
of every part and the question, and its choice decides which adapter answers::

    parts = split_requests(requests, 5)
    for name, part in zip(names, parts):
        train(part, name)                       # any trainer of LoRA adapters
    router = LabelRouter(model, tokenizer, [list_prompts(part) for part in parts])
    routed = evaluate_routed(model, tokenizer, parts, names, router)
    best = evaluate_routed(model, tokenizer, parts, names)      # the true choice

``parts`` splits requests, ``descriptions`` describes parts, ``label``, ``question`` and ``nearest`` are the routers and
``router`` what they have in common, ``evaluation`` and ``accuracy`` measure, ``report`` puts it in tables, and
``several`` is all of it in one call, as ``corsa evaluate-adapters`` makes it.
"""
