"""In-context answers from a store of edits: no weight is changed, and every change of weights has to beat it.

* :mod:`~corsa_plugins.methods.in_context.store`: the edits, and which of them a question is about;
* :mod:`~corsa_plugins.methods.in_context.reader`: a model that reads them before every question;
* :mod:`~corsa_plugins.methods.in_context.method`: as a method.
"""
