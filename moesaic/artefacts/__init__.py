"""This package's own folders: bases, experts, routers, each with a manifest."""
