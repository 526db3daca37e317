"""LocFT-BF: fine-tuning, breadth first, of one place that is known to take facts ("Fine-tuning Done Right in Model
Editing", ICLR 2026, arXiv:2509.22072).

* :mod:`~corsa_plugins.methods.locft.settings`: what trains, and how long;
* :mod:`~corsa_plugins.methods.locft.train`: the epochs;
* :mod:`~corsa_plugins.methods.locft.method`: as a method of every protocol.
"""
