"""The explorer: pages to play with in a browser, made from models that this library trains.

These commands write the pages::

    python -m ddfp_lib.explorer site/explorer              # the three pages
    python -m ddfp_lib.explorer OUT --only pictures --run runs/mine --data DIR

Each page is one HTML file without a server and without another host. What a page shows is computed
here, by the same functions that training uses; the flow alone is computed again in the browser,
from exported weights, and a test compares the two.
"""
