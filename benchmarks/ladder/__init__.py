"""The refactor that Onehop stands for, as seven stages with one contract and the same data.

0 fourteen services · 1 one process · 2 truly async · 3 heavy work in the background · 4 the product without its cache
on a plain event loop: queries, index, columns · 5 with the cache · 6 uvloop, httptools and a worker a core.

Stages 0 to 3 are a reconstruction: each defect is one of the story's and stands in a comment beginning with "Defect".
"""
