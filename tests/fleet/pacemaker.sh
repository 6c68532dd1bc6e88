#!/usr/bin/env bash
# The resource agent of resources/fleet/pacemaker by Debian's ocf-tester, with a stand-in for the VM
# (vmm/ctl/examples/fake_vm.rs) and the real `tesseractl`; and what Pacemaker's scheduler does with VMs that have
# utilization, by crm_simulate: no cluster runs. As root: pacemaker.sh [FOLDER OF BUILT PROGRAMS].
# What it starts ends with it, and its files go; packages stay. Not a part of make test.
set -euo pipefail
cd "$(dirname "$0")/../.."
built=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/debug}")
readonly built

# shellcheck source=tests/fleet/packages.sh
. tests/fleet/packages.sh
install_packages cluster-glue resource-agents libxml2-utils pacemaker-cli-utils

work=$(mktemp -d /tmp/tessera-pacemaker.XXXXXX)
readonly work
# The agent is called as an ordinary user, too.
chmod 755 "$work"
finish() {
    pkill -KILL -f "^$work/bin/tessera run" || :
    rm -rf "$work"
}
trap finish EXIT
die() {
    printf 'pacemaker.sh: %s\n' "$*" >&2
    exit 1
}

# ---- the agent ----

mkdir -p "$work/bin" "$work/tmp"
cp -a /usr/lib/ocf "$work/ocf"
install -D -m 755 resources/fleet/pacemaker/vm "$work/ocf/resource.d/tessera/vm"
cp "$built/examples/fake_vm" "$work/bin/tessera"
cp "$built/tesseractl" "$work/bin/tesseractl"
touch "$work/Image"
echo "{\"boot-source\": {\"kernel_image_path\": \"$work/Image\"}}" >"$work/vm.json"
export OCF_ROOT=$work/ocf HA_RSCTMP=$work/tmp TESSERA_RUNTIME_DIR=$work/registry
agent=$OCF_ROOT/resource.d/tessera/vm
ocf-tester -n vm1 -o config="$work/vm.json" -o programs="$work/bin" "$agent"

# call CONFIG ACTION: the agent's exit status.
call() {
    local status=0
    OCF_RESOURCE_INSTANCE=vm1 OCF_RESKEY_programs=$work/bin OCF_RESKEY_config=$1 "$agent" "$2" >/dev/null 2>&1 || status=$?
    echo $status
}
# The numbers of ocf-returncodes: 0 success, 1 generic, 5 not on this node, 6 wrong everywhere, 7 not running.
expect() { [[ $1 == "$2" ]] || die "$3: $1 instead of $2"; }
expect "$(call "$work/none.json" start)" 5 'a configuration that this node lacks'
expect "$(call '' start)" 6 'no configuration'
for pair in 69:5 78:6 77:4 70:1; do
    # The stand-in reads its words from the command line alone.
    printf '#!/bin/sh\nexec %s/bin/tessera "$@" --cmdline fail=%s\n' "$work" "${pair%:*}" >"$work/failing"
    mkdir -p "$work/failing-bin"
    install -m 755 "$work/failing" "$work/failing-bin/tessera"
    cp "$built/tesseractl" "$work/failing-bin/"
    status=0
    OCF_RESOURCE_INSTANCE=vm1 OCF_RESKEY_programs=$work/failing-bin OCF_RESKEY_config=$work/vm.json "$agent" start >/dev/null 2>&1 ||
        status=$?
    expect $status "${pair#*:}" "a VM that ends with ${pair%:*}"
done
expect "$(call "$work/vm.json" start)" 0 start
pkill -KILL -f "^$work/bin/tessera run"
for ((i = 0; i < 50; i++)); do [[ $(call "$work/vm.json" monitor) != 0 ]] && break; sleep 0.1; done
expect "$(call "$work/vm.json" monitor)" 7 'a VM that was killed'

# ---- placement: seven VMs of 100 MiB on three nodes of 256 ----

{
    cat <<END
<cib crm_feature_set="3.0.14" validate-with="pacemaker-3.0" epoch="1" num_updates="0" admin_epoch="0" have-quorum="1" dc-uuid="1">
<configuration>
<crm_config><cluster_property_set id="options">
<nvpair id="strategy" name="placement-strategy" value="balanced"/>
<nvpair id="stonith" name="stonith-enabled" value="false"/>
</cluster_property_set></crm_config>
<nodes>
END
    for node in 1 2 3; do
        cat <<END
<node id="$node" uname="n$node"><utilization id="n$node-has">
<nvpair id="n$node-tagmib" name="tagmib" value="256"/><nvpair id="n$node-memory" name="hv_memory" value="2048"/>
</utilization></node>
END
    done
    echo '</nodes><resources>'
    for vm in 1 2 3 4 5 6 7; do
        cat <<END
<primitive id="vm$vm" class="ocf" provider="tessera" type="vm">
<instance_attributes id="vm$vm-parameters"><nvpair id="vm$vm-config" name="config" value="/etc/tessera/vm$vm.json"/></instance_attributes>
<utilization id="vm$vm-needs"><nvpair id="vm$vm-tagmib" name="tagmib" value="100"/>
<nvpair id="vm$vm-memory" name="hv_memory" value="300"/></utilization>
<operations><op id="vm$vm-monitor" name="monitor" interval="10s" timeout="20s"/></operations>
</primitive>
END
    done
    echo '</resources><constraints/></configuration><status>'
    for node in 1 2 3; do
        echo "<node_state id=\"$node\" uname=\"n$node\" in_ccm=\"true\" crmd=\"online\" join=\"member\" expected=\"member\"><lrm id=\"$node\"><lrm_resources/></lrm></node_state>"
    done
    echo '</status></cib>'
} >"$work/cib.xml"

# count NODE FILE: of VMs that run there.
count() { crm_simulate --xml-file "$2" 2>/dev/null | grep -c "(ocf:tessera:vm):.*Started $1" || :; }
crm_simulate --xml-file "$work/cib.xml" --simulate --save-output "$work/placed.xml" >"$work/placed.txt"
for node in n1 n2 n3; do expect "$(count $node "$work/placed.xml")" 2 "VMs on $node"; done
expect "$(crm_simulate --xml-file "$work/placed.xml" | grep -c '(ocf:tessera:vm):.*Stopped')" 1 'VMs that fit nowhere'

# Of three VMs, that of a node that fails has room elsewhere.
sed -e '/<primitive id="vm[4567]"/,/<\/primitive>/d' "$work/cib.xml" >"$work/three.xml"
crm_simulate --xml-file "$work/three.xml" --simulate --save-output "$work/three-placed.xml" >/dev/null
for node in n1 n2 n3; do expect "$(count $node "$work/three-placed.xml")" 1 "of three VMs on $node"; done
crm_simulate --xml-file "$work/three-placed.xml" --simulate --node-fail n2 --save-output "$work/failed.xml" >"$work/failed.txt"
expect "$(count n1 "$work/failed.xml") $(count n2 "$work/failed.xml") $(count n3 "$work/failed.xml")" \
    "$( [[ $(count n1 "$work/failed.xml") == 2 ]] && echo '2 0 1' || echo '1 0 2')" 'VMs when n2 has failed'
sed -n '/^Transition Summary/,/^$/p' "$work/failed.txt"

# Where all nodes are full, those of a failed node wait, and the others stay.
crm_simulate --xml-file "$work/placed.xml" --simulate --node-fail n2 --save-output "$work/full.xml" >/dev/null
expect "$(count n1 "$work/full.xml") $(count n2 "$work/full.xml") $(count n3 "$work/full.xml")" '2 0 2' 'VMs on full nodes'
echo 'pacemaker.sh: placed by utilization, failed over'
