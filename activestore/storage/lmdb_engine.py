"""Interim engine: to be replaced by the storage helper's."""
from __future__ import annotations
import os, fcntl, pickle, time, lmdb
from activestore.errors import *
from activestore.storage.engine import *
from activestore.ids import *
from activestore.wire.state import apply_delta, state_bytes_count, ObjectState
class LmdbEngine:
    @classmethod
    def open(cls, directory, *, disk_budget_bytes, **_):
        self=cls(); os.makedirs(directory,exist_ok=True)
        p=os.path.join(directory,"PEER")
        if not os.path.exists(p): open(p,"wb").write(new_peer_id())
        self.peer_id=open(p,"rb").read()
        self.env=lmdb.open(os.path.join(directory,"data"),max_dbs=8,map_size=1<<34)
        self.o=self.env.open_db(b"o"); self.r=self.env.open_db(b"r"); self.a=self.env.open_db(b"a"); self.c=self.env.open_db(b"c"); self.p=self.env.open_db(b"p")
        return self
    def _get(self,t,oid):
        v=t.get(oid,db=self.o); return None if v is None else pickle.loads(v)
    def commit(self,changes):
        out=[]
        with self.env.begin(write=True) as t:
            for c in changes:
                cur=self._get(t,c.object_id); e=None
                if c.is_delete:
                    if cur is None: e=ObjectNotFoundError(c.object_id)
                    else:
                        t.delete(c.object_id,db=self.o)
                        if cur[0].alias: t.delete(cur[0].alias.encode(),db=self.a)
                elif c.state is not None or c.delta is not None:
                    if c.alias and t.get(c.alias.encode(),db=self.a) not in (None,c.object_id): e=AliasExistsError(c.alias,t.get(c.alias.encode(),db=self.a))
                    elif c.delta is not None and cur is None: e=ObjectNotFoundError(c.object_id)
                    else:
                        st=c.state if c.state is not None else apply_delta(cur[1],c.delta)
                        st=st._replace(buffers=[bytes(b) for b in st.buffers],fields=dict(st.fields))
                        al=c.alias or (cur[0].alias if cur else "")
                        h=Head(c.object_id,st.class_name,st.revision,st.class_version,0,c.version,al,c.durability,state_bytes_count(st),time.time(),time.time(),{k:len(v) for k,v in st.fields.items()},tuple(st.graph_fields))
                        t.put(c.object_id,pickle.dumps((h,st)),db=self.o)
                        if al: t.put(al.encode(),c.object_id,db=self.a)
                if e is None and c.reply: t.put(c.object_id+c.reply.session+c.reply.sequence.to_bytes(8,"big"),pickle.dumps(c.reply),db=self.r)
                for s,q in c.drop_replies: t.delete(c.object_id+s+q.to_bytes(8,"big"),db=self.r)
                out.append(e)
        return out
    def load(self,oid):
        with self.env.begin() as t: return self._get(t,oid)
    def head(self,oid):
        x=self.load(oid); return x and x[0]
    def resolve(self,alias):
        with self.env.begin() as t: return t.get(alias.encode(),db=self.a)
    def heads(self,*,after=None,alias_prefix="",limit=1000):
        with self.env.begin() as t:
            return [pickle.loads(v)[0] for k,v in t.cursor(db=self.o) if (after is None or k>after)][:limit]
    def reply(self,oid,s,q):
        with self.env.begin() as t:
            v=t.get(oid+s+q.to_bytes(8,"big"),db=self.r); return v and pickle.loads(v)
    def expire_replies(self,b,limit=1): return 0
    def put_code(self,package,archive,records):
        with self.env.begin(write=True) as t:
            t.put(package,archive,db=self.p)
            for r in records: t.put(r.class_name.encode(),pickle.dumps(r),db=self.c)
    def code(self,package):
        with self.env.begin() as t: return t.get(package,db=self.p)
    def classes(self):
        with self.env.begin() as t: return [pickle.loads(v) for k,v in t.cursor(db=self.c)]
    def collect_garbage(self,s=0): return 0
    def usage(self): return Usage(0,0,0,0,0,0,0,0)
    def close(self): self.env.close()
