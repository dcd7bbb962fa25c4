"""What passes know about a graph and how they change it: sites, views, provenance, and builders."""
