package nbdserver

import (
	"github.com/moraine-storage/moraine/drivers/block"
	"github.com/moraine-storage/moraine/drivers/nbd"
)

// Contexts is what an export has beside base:allocation, for example
// moraine:delta/SNAP: what changed since a snapshot.
type Contexts interface {
	// Match returns the names that a query selects: "" all, "ns:" those of a
	// namespace, else a full name. Any goroutine.
	Match(query string) []string
	// Status appends the state of [off, off+length) under a context that Match
	// returned, in order, without gaps, from off on, at most limit extents. It
	// may stop short of the end but not return nothing. Called on the loop's
	// goroutine: it must not block.
	Status(q block.Queue, context string, dst []nbd.Extent, off, length int64, limit int) ([]nbd.Extent, error)
}

// blockStatus answers BLOCK_STATUS: one chunk per selected context.
func (l *Loop) blockStatus(r *request) {
	c := r.c
	l.stats.Statuses++
	limit := nbd.MaxExtents
	if uint16(r.req.Tag)&nbd.CmdFlagReqOne != 0 {
		limit = 1
	}
	before := c.out.bytes
	// All of it is found out before the first byte is queued: an error then
	// still is the whole answer.
	l.statusBuf = l.statusBuf[:0]
	l.statusEnds = l.statusEnds[:0]
	for _, ctx := range c.neg.Contexts {
		ext, err := l.contextStatus(c, ctx.Name, r.off, r.end-r.off, limit)
		if err != nil {
			l.stats.Errors++
			c.replyEmpty(r.cookie, uint64(r.off), r.cmd, errnoOf(err))
			l.finish(r)
			return
		}
		l.statusBuf = nbd.AppendStatus(l.statusBuf, ctx.ID, ext, c.neg.Extended)
		l.statusEnds = append(l.statusEnds, len(l.statusBuf))
	}
	typ := nbd.ChunkBlockStatus
	if c.neg.Extended {
		typ = nbd.ChunkBlockStatusExt
	}
	start := 0
	for i, end := range l.statusEnds {
		var flags uint16
		if i == len(l.statusEnds)-1 {
			flags = nbd.ChunkFlagDone
		}
		n := end - start
		h := c.chunkSize()
		p := c.out.room(h + n)
		c.putChunk(p, nbd.Chunk{Flags: flags, Type: typ, Cookie: r.cookie, Off: uint64(r.off), Len: uint64(n)})
		copy(p[h:], l.statusBuf[start:end])
		start = end
	}
	c.added(before)
	l.finish(r)
}

// contextStatus returns extents that cover [off, off+length) or its beginning.
func (l *Loop) contextStatus(c *conn, name string, off, length int64, limit int) ([]nbd.Extent, error) {
	dst := l.extents[:0]
	var err error
	switch {
	case name != nbd.ContextAllocation:
		if c.session.Contexts == nil {
			return nil, block.ErrUnsupported
		}
		dst, err = c.session.Contexts.Status(l.queue, name, dst, off, length, limit)
	case l.extenter == nil:
		dst = append(dst, nbd.Extent{Len: uint64(length)})
	default:
		l.blockExtents, err = l.extenter.Extents(l.blockExtents[:0], off, length, limit)
		for _, e := range l.blockExtents {
			var f uint64
			if e.Hole {
				f |= nbd.StateHole
			}
			if e.Zero {
				f |= nbd.StateZero
			}
			dst = append(dst, nbd.Extent{Len: uint64(e.Len), Flags: f})
		}
	}
	l.extents = dst[:0]
	if err != nil {
		return nil, err
	}
	return clip(dst, uint64(length), limit)
}

// clip holds an answer to what the protocol allows: at least one extent, none
// empty, no more than asked for, not beyond the range.
func clip(ext []nbd.Extent, length uint64, limit int) ([]nbd.Extent, error) {
	if len(ext) == 0 {
		return nil, block.ErrIO
	}
	ext = ext[:min(len(ext), limit)]
	for i := range ext {
		if ext[i].Len == 0 {
			return nil, block.ErrIO
		}
		if ext[i].Len >= length {
			ext[i].Len = length
			return ext[:i+1], nil
		}
		length -= ext[i].Len
	}
	return ext, nil
}
