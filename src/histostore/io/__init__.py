"""Readers of what comes beside an image: counts, spots, polygons, tables. They return plain values and know no store.

==============  ====================================================================
`st`            Spatial Transcriptomics v1: counts and spot file
`visium`        Space Ranger folders
`tenx`          the matrices in them
`adata`         h5ad and zarr of AnnData
`geojson`       polygons, and the labels they give to tiles
`sheet`         sample sheets
`obs`           tables of spots, slides or patients; given points
`align`         counts to points by id; points to image and tissue
`mpp`           resolution from the spot pitch, and which of several values holds
`check`         what every table must satisfy
`delimited`     CSV and TSV as text
==============  ====================================================================
"""
