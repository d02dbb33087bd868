"""x"""


def demo():
    """x"""
