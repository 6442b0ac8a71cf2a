package docker

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/volume"

	"github.com/moraine-storage/moraine/agent/api/size"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

// describe is what `docker volume inspect` shows of a volume.
func (p *Plugin) describe(v *apiv1.Volume) *volume.Volume {
	out := &volume.Volume{Name: v.GetName(), Mountpoint: p.mountpoint(v), Status: p.status(v)}
	if t := v.GetCreatedAt(); t != nil {
		out.CreatedAt = t.AsTime().Format(time.RFC3339)
	}
	return out
}

// mountpoint is where the volume is mounted on this node, "" if it is not.
func (p *Plugin) mountpoint(v *apiv1.Volume) string {
	for _, a := range v.GetAttachments() {
		if a.GetPath() != "" && (p.node == "" || a.GetNode() == p.node) {
			return a.GetPath()
		}
	}
	return ""
}

func (p *Plugin) status(v *apiv1.Volume) map[string]any {
	spec, use := v.GetSpec(), v.GetUsage()
	s := map[string]any{
		"id":               v.GetId(),
		"state":            strings.ToLower(strings.TrimPrefix(v.GetState().String(), "VOLUME_")),
		"size":             size.Exact(spec.GetSizeBytes()),
		"size_bytes":       spec.GetSizeBytes(),
		"used_bytes":       use.GetAllocatedBytes(),
		"snapshot_bytes":   use.GetSnapshotBytes(),
		"snapshots":        v.GetSnapshots(),
		"filesystem":       spec.GetFs(),
		"driver":           spec.GetDriver(),
		"replicas":         spec.GetReplicas(),
		"in_sync_replicas": inSync(v),
	}
	if n := use.GetFilesystemSizeBytes(); n > 0 {
		s["filesystem_size_bytes"] = n
		s["filesystem_used_bytes"] = use.GetFilesystemUsedBytes()
	}
	for key, text := range map[string]string{"pool": spec.GetPool(), "from_snapshot": spec.GetFromSnapshot()} {
		if text != "" {
			s[key] = text
		}
	}
	if n := spec.GetMaxIops(); n > 0 {
		s["max_iops"] = n
	}
	if n := spec.GetMaxBandwidth(); n > 0 {
		s["max_bandwidth"] = n
	}
	if l := spec.GetLabels(); len(l) > 0 {
		s["labels"] = maps.Clone(l)
	}
	if a := attachments(v); len(a) > 0 {
		s["attachments"] = a
	}
	if c := conditions(v); len(c) > 0 {
		s["conditions"] = c
	}
	return s
}

func inSync(v *apiv1.Volume) int {
	n := 0
	for _, r := range v.GetReplicas() {
		if r.GetRole() == "in_sync" {
			n++
		}
	}
	return n
}

func attachments(v *apiv1.Volume) []map[string]any {
	var list []map[string]any
	for _, a := range v.GetAttachments() {
		list = append(list, map[string]any{"node": a.GetNode(), "kind": a.GetKind(), "state": a.GetState(),
			"device": a.GetDevice(), "path": a.GetPath(), "consumers": slices.Sorted(slices.Values(a.GetConsumers()))})
	}
	return list
}

func conditions(v *apiv1.Volume) []string {
	var list []string
	for _, c := range v.GetConditions() {
		list = append(list, strings.ToLower(c.GetSeverity().String())+": "+c.GetMessage())
	}
	return list
}
