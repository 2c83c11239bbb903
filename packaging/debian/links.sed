# The links of the pages in a package: sed -E. Pages and pictures are side by side, the rest is in /usr/share/#NAME#.
s,\]\(\.\./deploy/systemd/#NAME#\.service,](../../../lib/systemd/system/#NAME#.service,g
s,\]\((\.\./)?(deploy|monitoring)/,](../../#NAME#/\2/,g
s,\]\(docs/,](,g
s,\]\(\.\./(\.?[[:alnum:]]),](\1,g
# What only the source has is named.
s,\[([^]]*)\]\(((CONTRIBUTING\.md|Containerfile|\.github|packaging|tests)[^)]*)\),\1 (\2 of the source),g
s,\b(\S+) \(\1 of the source\),\1 of the source,g
