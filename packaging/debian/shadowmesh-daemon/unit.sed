1s|.*|# shadowmesh-daemon.service of the package: the client as an unprivileged user, hardened.|
s|^ExecStart=/opt/shadowmesh/.venv/bin/|ExecStart=/usr/bin/|
s|docs/\([a-z]*\.md\)|/usr/share/doc/shadowmesh-daemon/\1|
/^After=/a\
# A host that has just got the package has neither; it is enabled all the same, and starts when there are both.\
ConditionPathExists=/etc/shadowmesh/client-config.yaml\
ConditionPathExists=/etc/shadowmesh/encryption.key
