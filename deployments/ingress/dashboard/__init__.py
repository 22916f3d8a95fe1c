"""The ops page: its files (`page/`, plain modules), what it asks for each second, and the history.

It reads what the rest of the ingress offers, and changes nothing by itself: the page's buttons call
the same endpoints as everybody.
"""
