"""The family of locate-then-edit: methods that the papers compare with, each a few settings of the one editor.

One file a method: its settings, which say where it differs from AlphaEdit, its published values, and its
:class:`~corsa_plugins.methods.spec.MethodSpec`. What is new in a method is a piece of the editor
(:mod:`corsa_plugins.alphaedit`), so that it has batches and sequences, states, reverts and reports as AlphaEdit+ has
them, and so that the three parts of AlphaEdit+ can be had on top of it (the paper's C.8): the methods whose name ends
in ``+``.
"""
