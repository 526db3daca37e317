"""Pages about what was measured.

* :mod:`~corsa_plugins.report.report`: what a page shows, as a value; :mod:`~corsa_plugins.report.page` makes HTML;
* :mod:`~corsa_plugins.report.sections`: the sections, a file each; :mod:`~corsa_plugins.report.charts` draws theirs,
  and :mod:`~corsa_plugins.report.render` fills ``templates/``;
* :mod:`~corsa_plugins.report.sources`: a report from what commands have written, by
  :mod:`~corsa_plugins.report.kinds`;
* :mod:`~corsa_plugins.report.evaluation_page`, :mod:`~corsa_plugins.report.protocol_page`,
  :mod:`~corsa_plugins.report.adapters_page`: what the pages of commands are made of.
"""
