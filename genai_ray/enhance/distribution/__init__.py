"""What a job needs only if its nodes do not share its folders.

* ``shared_folders``: where the folders of a job are, and the steps that run at home because another node lacks them.
"""

__all__: list[str] = []
