"""Advantage estimators, transforms, objectives, and the recipes that compose them."""
