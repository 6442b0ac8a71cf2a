package nbd

// Extent is one run of a BLOCK_STATUS reply.
type Extent struct {
	Len   uint64 // bytes, never 0
	Flags uint64 // State… in base:allocation; a context's own otherwise
}

// AppendStatus appends the payload of a ChunkBlockStatus (compact) or
// ChunkBlockStatusExt. In the compact form lengths are 32 bits: a longer
// extent is cut to the largest multiple of 1 MiB that fits and ends the list,
// since the next one could not follow it.
func AppendStatus(dst []byte, context uint32, extents []Extent, extended bool) []byte {
	dst = be.AppendUint32(dst, context)
	if extended {
		dst = be.AppendUint32(dst, uint32(len(extents)))
		for _, e := range extents {
			dst = be.AppendUint64(dst, e.Len)
			dst = be.AppendUint64(dst, e.Flags)
		}
		return dst
	}
	const maxCompact = 1<<32 - 1<<20
	for _, e := range extents {
		n := e.Len
		if n > maxCompact {
			n = maxCompact
		}
		dst = be.AppendUint32(dst, uint32(n))
		dst = be.AppendUint32(dst, uint32(e.Flags))
		if n != e.Len {
			break
		}
	}
	return dst
}

// DecodeStatus reads such a payload and appends its extents to dst.
func DecodeStatus(dst []Extent, p []byte, extended bool) (context uint32, extents []Extent, err error) {
	head, size := 4, 8
	if extended {
		head, size = 8, 16
	}
	if len(p) < head+size || (len(p)-head)%size != 0 || len(p) > MaxStatusPayload*2 {
		return 0, dst, protocolErrorf("block status chunk of %d bytes", len(p))
	}
	context = be.Uint32(p)
	if n := (len(p) - head) / size; extended && be.Uint32(p[4:]) != uint32(n) {
		return 0, dst, protocolErrorf("block status chunk: %d extents announced, %d sent", be.Uint32(p[4:]), n)
	}
	for q := p[head:]; len(q) > 0; q = q[size:] {
		var e Extent
		if extended {
			e = Extent{Len: be.Uint64(q), Flags: be.Uint64(q[8:])}
		} else {
			e = Extent{Len: uint64(be.Uint32(q)), Flags: uint64(be.Uint32(q[4:]))}
		}
		if e.Len == 0 {
			return 0, dst, protocolErrorf("block status chunk: empty extent")
		}
		dst = append(dst, e)
	}
	return context, dst, nil
}
