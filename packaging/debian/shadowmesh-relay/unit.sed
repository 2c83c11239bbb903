1s|.*|# shadowmesh-relay.service of the package: the unit of the deployment guide, hardened.|
s|^ExecStart=/opt/shadowmesh/|ExecStart=/usr/bin/|
s|docs/\([a-z]*\.md\)|/usr/share/doc/shadowmesh-relay/\1|
