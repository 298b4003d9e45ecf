"""A small local HTTP API over one store: search, tile images, overviews of slides, health; ids, never paths.

`operations` is the table that requests are checked by and that the OpenAPI document is made of; `catalog`, `pictures`
and `queries` answer from one snapshot of the store each; `guard`, `lanes` and `limits` bound what a client may do.
"""
