"""The report: one HTML page about one or more runs, made from their artifacts alone.

`content` gathers what a run's artifacts say, with `documents` (their JSON) and `settings`; `comparison` ranks runs,
`plots` draws, and `page` fills the template.
"""
