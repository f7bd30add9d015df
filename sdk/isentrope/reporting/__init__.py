"""What a person sees of a run: one HTML page that needs no network, no server and no other file.

Charts are plotly's: MIT, one company's main product, two small dependencies, and everything that
these charts need (gaps, stacks, logarithms, zooming, values under the pointer). Its script makes a
page 4.8 MB, which is the price. Bokeh's is smaller, but brings a web server and an imaging library;
Altair draws offline only with a converter of 33 MB; uPlot is 50 kB, but no Python package: we would
carry and update a copy of it. Figures are written as plotly's plain JSON, so plotly is imported for
its script alone, and only when a page is made.
"""
