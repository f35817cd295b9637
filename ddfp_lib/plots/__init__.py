"""Every figure of the lessons, the reports and the README.

Functions draw into figures of their own and return them; nothing is shown or saved here, and no
global setting of Matplotlib is touched.
"""
